"""Two subjects, plain and guided, from the embedded model: `python examples/demo.py out/demo.png`"""

import sys
from pathlib import Path

import limelight
from limelight.utils.images import grid

PROMPT, SEEDS = "a cat and a dog", range(6)

model = limelight.load("pocket")
rows = {}
for name, guidance in {"plain": None, "Attend-and-Excite": limelight.AttendAndExcite.suited(model)}.items():
    rows[name] = limelight.generate(model, PROMPT, seeds=SEEDS, guidance=guidance).images
    print(f"{name}: {len(rows[name])} pictures of '{PROMPT}'")

target = Path(sys.argv[1])
target.parent.mkdir(parents=True, exist_ok=True)
grid(list(rows.values()), list(rows)).save(target)
print(target)
