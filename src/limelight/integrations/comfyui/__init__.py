"""Nodes of limelight for ComfyUI: copy or link this folder into its folder ``custom_nodes``.

| module | holds |
|---|---|
| `model` | ComfyUI's model as limelight reads and steers it |
| `nodes` | the nodes |
"""

# Of the installed package, so that a copy of this folder works as well.
from limelight.integrations.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
