# ruff: noqa: E501 - long lines of drawing
"""The project's own drawings, as bodies of SVG on a square of 128."""

from __future__ import annotations

# No icon set has a bench: this is the one that the generator learns.
BENCH = """
<g fill="none" stroke="#5d4037" stroke-width="7" stroke-linecap="round">
<path d="M22 66v50M106 66v50M14 78v34M114 78v34"/></g>
<g fill="#a5673f"><rect x="10" y="22" width="108" height="13" rx="4"/>
<rect x="10" y="40" width="108" height="13" rx="4"/></g>
<g fill="#5d4037"><rect x="20" y="20" width="7" height="56"/><rect x="101" y="20" width="7" height="56"/></g>
<g fill="#b97a4e"><rect x="6" y="66" width="116" height="8" rx="3"/>
<rect x="4" y="76" width="120" height="10" rx="4"/></g>
"""
# For the detector alone: benches, and more views of things that the icon sets draw in too few ways.
OWN = {
    "bench": (
        """
<g fill="#4a4f57"><path d="M18 30h8v40h78V30h8v84h-9V88H27v26h-9z"/></g>
<g fill="#c98b54"><rect x="8" y="30" width="112" height="9"/><rect x="8" y="43" width="112" height="9"/>
<rect x="8" y="56" width="112" height="9"/><path d="M12 72h104l8 12H4z"/></g>
<g stroke="#8a5a33" stroke-width="2"><path d="M9 78h110M27 72v12M101 72v12"/></g>
""",
        """
<g fill="#6d4a2f"><path d="M20 40l-8 72h9l5-40h76l5 40h9l-8-72h-8v24H28V40z"/></g>
<g fill="#9c6b42"><rect x="16" y="34" width="96" height="24" rx="3"/>
<path d="M16 66h96l10 14H6z"/><path d="M6 80h116v7H6z" fill="#7d5434"/></g>
<g stroke="#7d5434" stroke-width="3"><path d="M18 46h92M12 73h104"/></g>
""",
        """
<g fill="none" stroke="#37474f" stroke-width="6">
<path d="M24 116V62q0-8-8-8M104 116V62q0-8 8-8M16 78H8V66M112 78h8V66"/></g>
<g fill="#d7a26a" stroke="#8d6239" stroke-width="2"><rect x="14" y="14" width="100" height="11" rx="5"/>
<rect x="14" y="29" width="100" height="11" rx="5"/><rect x="14" y="44" width="100" height="11" rx="5"/>
<rect x="8" y="72" width="112" height="9" rx="4"/><rect x="8" y="83" width="112" height="9" rx="4"/></g>
""",
    ),
    "horse": (
        """
<path d="M28 122C34 92 44 80 40 62L20 74Q8 74 8 64 10 52 22 44L44 22 48 6l10 14q32 6 40 40 6 30 2 62z" fill="#c98a4b"/>
<path d="M56 16q40 4 52 46 6 30 0 60H92q6-40-8-66Q74 36 54 28z" fill="#5b3413"/>
<circle cx="44" cy="42" r="4" fill="#222"/><circle cx="16" cy="63" r="2.500" fill="#6b3f1d"/>
""",
        """
<path d="M100 122q-2-40-10-60l20 10q10 2 10-8-2-14-14-20L84 20 82 4 70 18Q34 28 28 66q-2 30 4 56z" fill="#e8a860"/>
<path d="M72 14q-42 8-52 54 0 30 6 54h14q-8-44 8-70 12-20 26-24z" fill="#7a4a25"/>
<path d="M110 62q6 4 4 8" stroke="#7a4a25" stroke-width="3" fill="none"/><circle cx="84" cy="42" r="5" fill="#333"/>
<path d="M74 20l6-12 6 14z" fill="#f3c48c"/>
""",
        """
<path d="M40 30Q36 8 44 6q10 4 14 16h12q4-12 14-16 8 2 4 24 6 20 0 44-4 40-24 46-20-6-24-46-6-24 0-44z" fill="#b5763f"/>
<path d="M56 18q8-12 16 0 4 20-8 34-12-14-8-34z" fill="#4a2c12"/><ellipse cx="64" cy="104" rx="20" ry="16" fill="#e9c9a4"/>
<g fill="#222"><circle cx="48" cy="54" r="4"/><circle cx="80" cy="54" r="4"/><circle cx="57" cy="104" r="3"/>
<circle cx="71" cy="104" r="3"/></g>
""",
        """
<path d="M24 118q18-18 22-44L26 80Q12 82 8 72q-2-10 8-18l24-26 4-16 10 12q36 2 50 38 10 30 6 56z" fill="#f0a04b"/>
<g fill="#8a4f2a"><path d="M54 20l20-8 2 12 16-2-2 14 16 4-6 12 14 10-10 10 10 14-12 6 6 16-16-2q4-36-14-58-10-12-24-16z"/></g>
<circle cx="42" cy="46" r="5" fill="#2b1a10"/><path d="M8 70q8 6 18 2" stroke="#b56a2a" stroke-width="3" fill="none"/>
""",
        """
<path d="M104 120Q92 96 86 70l14 10q14 6 20-4 2-10-8-20L92 30 88 10 76 22Q40 24 26 62q-10 30-6 58z" fill="#d98b45"/>
<path d="M76 20q-8-12-22-10Q20 20 12 60q-4 30 2 60h16q-8-40 12-66 14-20 34-26z" fill="#6e3b1c"/>
<path d="M96 60q12 4 18 14" stroke="#f7d7ae" stroke-width="9" fill="none" stroke-linecap="round"/>
<circle cx="82" cy="44" r="5" fill="#1c120b"/><circle cx="110" cy="70" r="2.500" fill="#5a3010"/>
""",
        """
<path d="M20 116q14-20 24-50-14 12-26 12-12-2-12-14Q20 44 40 26L46 8l12 14q44 6 56 60 4 20 2 34z" fill="#ffb766"/>
<path d="M58 20Q96 18 112 60q8 28 6 56-14-2-22-12 6-12 0-24-8-2-12-12 2-14-8-22-10-2-14-12-4-8-6-14z" fill="#a0623a"/>
<ellipse cx="40" cy="46" rx="5" ry="7" fill="#333"/><path d="M6 64q4-8 14-12l4 20q-14 8-18-8z" fill="#ffd9a6"/>
""",
        """
<path d="M46 120q8-24 4-44l-22 6Q14 90 8 78q-4-10 8-18l26-30 2-22 12 14q34 4 42 40 4 30 10 58z" fill="#f2ad5c"/>
<path d="M50 24q0-14-16-10 6 8 6 16zM58 22q30 2 42 34l-6 4 12 12-8 6 10 14-8 4 6 20-12 4q2-44-12-66-12-18-26-20z" fill="#8b6356"/>
<path d="M8 78q-2-12 10-18l10 18q-10 16-20 0z" fill="#fff3e0"/><circle cx="50" cy="46" r="5" fill="#2a2a2a"/><circle cx="15" cy="72" r="3" fill="#5c4037"/>
""",
        """
<path d="M40 122q6-18 4-36Q34 100 20 98 6 96 8 84q4-12 16-22 6-20 22-30l4-24 12 18q36 14 40 96z" fill="#ffbd66"/>
<path d="M56 26q18-4 32 16l4 10 8 4-2 10 8 8-6 8 8 12-8 6 6 20-14 2q-2-48-20-74-8-10-16-12z" fill="#795548"/>
<path d="M50 30Q42 16 28 20q6 10 16 16z" fill="#6d4c41"/><path d="M8 84q6-16 16-20l8 22q-18 20-24-2z" fill="#fafafa"/>
<ellipse cx="48" cy="54" rx="5" ry="6" fill="#212121"/><circle cx="16" cy="82" r="3" fill="#3e2723"/><path d="M54 10l2 14" stroke="#fff" stroke-width="4"/>
""",
        """
<path d="M84 122q-8-20-4-42l24 12q14 2 16-10 0-12-14-20L84 34 78 10 68 26Q36 34 30 70q-4 28-8 52z" fill="#e9a55a"/>
<path d="M72 24Q42 22 28 62l8 2-14 12 8 4-12 14 10 4-8 24h14q0-40 10-60 10-22 28-30z" fill="#5d4037"/>
<path d="M120 82q0-12-14-20l-10 22q14 18 24-2z" fill="#ffe8c8"/><circle cx="80" cy="50" r="6" fill="#111"/><circle cx="110" cy="78" r="2.500" fill="#5d4037"/>
""",
        """
<path d="M36 120q16-22 14-46-14 4-24 14Q10 92 8 80q2-16 18-26L44 30l8-22 8 18q30 8 36 44 6 26 0 50z" fill="#d9954e"/>
<path d="M58 22q12-10 18 4 12 2 12 14 12 4 8 16 10 8 4 18 8 10 2 20 6 12 0 24H90q4-50-10-72-10-14-22-18z" fill="#9b6a4a"/>
<path d="M26 54q8 14 2 34" stroke="#f7dcb9" stroke-width="8" fill="none"/><circle cx="50" cy="50" r="4.500" fill="#1b1b1b"/><ellipse cx="14" cy="76" rx="3" ry="2" fill="#6b4326"/>
""",
        """
<path d="M34 118q10-30 8-44L22 88q-12 4-16-8 0-8 12-16l18-28 6-26 12 16q42 10 50 92z" fill="#fcb35b"/>
<path d="M54 26Q94 24 112 118H96Q94 60 54 40z" fill="#8d6e63"/><path d="M30 26q10-10 22 2l-6 16q-6-12-16-18z" fill="#8d6e63"/>
<path d="M6 78q2-10 12-14l10 20q-16 14-22-6z" fill="#fff"/><circle cx="46" cy="50" r="5" fill="#333"/><circle cx="13" cy="78" r="2.500" fill="#444"/>
""",
        """
<path d="M48 120q0-22 8-40-10 2-20 2l-14 4Q8 86 6 74q0-10 10-20L46 26 62 6l8 16q28 12 34 50 4 26 4 48z" fill="#f6a94f"/>
<path d="M64 22q34 8 46 98H94q4-56-30-84zM58 24Q46 22 34 10q18-4 28 6z" fill="#7b5648"/>
<path d="M6 74q0-10 10-20l16 14-4 16-6 2Q8 86 6 74z" fill="#fbe9d7"/><path d="M10 78q10 4 22-2" stroke="#5d4037" stroke-width="3" fill="none"/>
<ellipse cx="48" cy="46" rx="4" ry="6" fill="#2b2b2b"/><circle cx="14" cy="66" r="3" fill="#5d4037"/>
""",
        """
<path d="M40 122q12-16 14-38l-22 2-8 8Q10 96 6 82q0-8 8-14l8-18q10-14 28-22l8-20 14 16q28 18 34 98z" fill="#ffb35c"/>
<path d="M70 22q16 4 20 18l8 6-2 10 8 10-4 10 8 12-4 12 8 22H96q0-60-30-92zM62 24Q44 26 36 12q16-8 30 6z" fill="#8a5a4a"/>
<path d="M6 82q0-8 8-14l14 4 4 14-8 8Q10 96 6 82z" fill="#fff"/><path d="M8 84l22-4" stroke="#6b4a3a" stroke-width="3"/>
<circle cx="46" cy="48" r="5" fill="#222"/><ellipse cx="15" cy="75" rx="2.500" ry="4" fill="#333"/>
""",
        """
<path d="M52 120q-2-20 4-38-14 8-28 6L14 84Q4 78 8 68l10-12q14-26 36-30L60 4l12 20q30 20 32 60l6 36z" fill="#eda04a"/>
<path d="M60 4q-14 2-20 14l6 6 14-2zM72 22q18-2 26 22 14 30 18 76h-14q2-66-36-88z" fill="#6b4636"/>
<path d="M8 68l8-10 18 18-6 12-14-4Q4 78 8 68z" fill="#f4dcc0"/><path d="M12 76q10 6 20 4" stroke="#7a4a2a" stroke-width="3" fill="none"/>
<circle cx="50" cy="44" r="4.500" fill="#161616"/><circle cx="50" cy="43" r="1.500" fill="#fff"/><circle cx="15" cy="68" r="2.500" fill="#4a2c18"/>
""",
        """
<path d="M76 120q4-20-4-38 12 6 24 4l12 4q12-2 12-14-2-10-10-20L82 28 66 6 56 24Q28 36 24 76l-8 44z" fill="#fbb05a"/>
<path d="M58 22q-38 8-46 98h14q-2-58 38-84zM64 24q14 0 28-12-18-8-32 4z" fill="#7d594c"/><path d="M120 76q-2-10-8-18l-16 12 2 16 10 4q12-2 12-14z" fill="#fffaf3"/>
<path d="M98 82q10 4 20-2" stroke="#5d4037" stroke-width="3" fill="none"/><circle cx="76" cy="46" r="5" fill="#222"/><ellipse cx="112" cy="68" rx="2.500" ry="4" fill="#444"/>
""",
        """
<path d="M44 120q14-22 12-40-8 4-16 4l-6 8q-16 6-24-6-2-10 6-18l10-22q10-14 26-18l10-22 10 20q30 14 36 50 2 24 0 44z" fill="#f0a550"/>
<path d="M70 24q18 0 22 14 14 8 12 24 12 12 6 28 8 14 2 30H94q6-62-30-84zM60 26Q48 30 38 20q-4-12 6-14 12 2 20 10z" fill="#90604c"/>
<path d="M10 86q-2-10 6-18l16 4 8 12-6 8q-16 6-24-6z" fill="#fcefe0"/><path d="M12 86q12 2 22-6" stroke="#4e342e" stroke-width="3.500" fill="none"/>
<circle cx="44" cy="50" r="5" fill="#1d1d1d"/><circle cx="18" cy="76" r="3" fill="#3e2723"/><path d="M64 12l4 14" stroke="#ffd7a8" stroke-width="4"/>
""",
    ),
    "suitcase": (
        """
<g transform="rotate(24 64 64)"><path d="M50 36V12h28v24" fill="none" stroke="#666" stroke-width="5"/>
<rect x="34" y="34" width="60" height="78" rx="8" fill="#2f8fd8"/><g fill="#1b6cab"><rect x="44" y="40" width="5" height="66"/>
<rect x="62" y="40" width="5" height="66"/><rect x="80" y="40" width="5" height="66"/></g>
<g fill="#333"><circle cx="44" cy="116" r="6"/><circle cx="84" cy="116" r="6"/></g></g>
""",
        """
<g transform="rotate(30 64 64)"><path d="M48 30V8h32v22" fill="none" stroke="#9aa0a6" stroke-width="6"/>
<rect x="30" y="28" width="68" height="84" rx="12" fill="#1976d2"/><rect x="38" y="36" width="52" height="68" rx="6" fill="#42a5f5"/>
<circle cx="52" cy="56" r="9" fill="#ffca28"/><path d="M66 76l20-6 4 16-20 6z" fill="#ef5350"/>
<rect x="34" y="110" width="12" height="12" rx="3" fill="#263238"/><rect x="82" y="110" width="12" height="12" rx="3" fill="#263238"/></g>
""",
        """
<g transform="rotate(-18 64 64)"><path d="M48 42q0-16 16-16t16 16" fill="none" stroke="#4e342e" stroke-width="7"/>
<rect x="12" y="42" width="104" height="66" rx="8" fill="#a1662f"/><g fill="#6d4120"><rect x="28" y="42" width="9" height="66"/>
<rect x="91" y="42" width="9" height="66"/></g><rect x="56" y="54" width="16" height="10" fill="#e0b34d"/></g>
""",
        """
<g transform="rotate(38 64 64)"><path d="M52 34V6h24v28" fill="none" stroke="#555" stroke-width="4"/>
<rect x="36" y="32" width="56" height="80" rx="6" fill="#0288d1"/><path d="M92 38l12 6v62l-12 6z" fill="#01579b"/>
<rect x="42" y="60" width="40" height="40" rx="4" fill="#4fc3f7"/><circle cx="62" cy="46" r="6" fill="#fff176"/>
<circle cx="46" cy="116" r="6" fill="#222"/><circle cx="86" cy="116" r="6" fill="#222"/></g>
""",
    ),
    "backpack": (
        """
<path d="M36 42q2-26 32-26t34 28l4 60q0 12-12 12H42q-12 0-12-12z" fill="#e0483e"/><path d="M102 44l14 12v42l-10 12z" fill="#a52a24"/>
<path d="M54 18q0-12 14-12t14 12" fill="none" stroke="#8e241f" stroke-width="6"/><rect x="42" y="70" width="48" height="36" rx="6" fill="#c0392b"/>
<path d="M44 46h46" stroke="#8e241f" stroke-width="5"/><rect x="60" y="66" width="10" height="16" fill="#f4d03f"/>
""",
        """
<path d="M24 52q0-36 40-36t42 34l2 58q0 8-10 8H34q-10 0-10-8z" fill="#d84315"/><path d="M18 60l8-6v46l-8-4z" fill="#9c2f0d"/>
<path d="M50 16q2-10 14-10t14 10" fill="none" stroke="#6d1f08" stroke-width="5"/><path d="M34 76h60v32H34z" fill="#ff7043"/>
<path d="M34 84h60" stroke="#6d1f08" stroke-width="4"/><path d="M40 20q-6 20-4 44M88 20q8 20 6 44" stroke="#6d1f08" stroke-width="6" fill="none"/>
""",
        """
<path d="M30 40l20-22h38l14 24 4 62-10 14H38l-12-12z" fill="#c62828"/><path d="M50 18l-4 34 44-2-2-32z" fill="#e57373"/>
<rect x="48" y="68" width="44" height="38" rx="8" fill="#8e0000"/><rect x="52" y="74" width="36" height="6" fill="#ffcdd2"/>
<path d="M102 42q18 14 12 56l-10 4z" fill="#6a0000"/><path d="M58 18q0-10 10-10t12 10" stroke="#6a0000" stroke-width="5" fill="none"/>
""",
        """
<path d="M86 30q28 4 30 34 2 28-10 46" fill="none" stroke="#ff7a45" stroke-width="10"/><path d="M94 44q12 12 12 56" fill="none" stroke="#5d6b75" stroke-width="5"/>
<path d="M18 66q0-42 34-44 34 0 42 36l4 44q0 14-14 16l-54 2q-16 0-14-16z" fill="#f4503a"/><path d="M22 84l52 2v24l-50-2z" fill="#c9341f"/>
<path d="M24 86l50 2 6-8-48-2z" fill="#ff8a65"/><rect x="38" y="44" width="20" height="12" rx="3" fill="#ffb38f"/>
<path d="M44 22q0-14 12-14t12 16" fill="none" stroke="#546e7a" stroke-width="6"/>
""",
        """
<path d="M78 22q34 0 38 40l2 40-10 2-4-40q-4-26-26-30z" fill="#e85c2c"/><path d="M30 24h44q18 10 20 40l2 50q-4 8-14 8H30q-12 0-12-10V58q0-24 12-34z" fill="#e53f33"/>
<path d="M28 88h50v26H28z" fill="#b3261e"/><path d="M26 80h56v10H26z" fill="#ff8a70"/><ellipse cx="52" cy="54" rx="12" ry="7" fill="#ffab91"/>
<path d="M42 26q2-18 14-18t12 18" fill="none" stroke="#3d5a80" stroke-width="7"/><path d="M104 66l4 40 10-6-2-34z" fill="#eceff1"/>
""",
        """
<path d="M42 26q-24 4-30 36l-4 40 10 4 6-40q4-22 22-26z" fill="#f57c3a"/><path d="M52 22q44-4 50 38l6 46q0 14-14 14l-46-2q-14 0-14-16l2-44q2-32 16-36z" fill="#d9352a"/>
<path d="M50 82h50l2 28-52-2z" fill="#a8221b"/><path d="M48 74h52v9H48z" fill="#f07060"/><path d="M64 44h22v12H64z" fill="#f9a58c"/><path d="M60 24q2-16 14-16t12 16" fill="none" stroke="#37474f" stroke-width="6"/>
""",
        """
<path d="M88 28q26 10 28 44l2 28-14 16-8-8 10-16-4-30q-2-14-16-20z" fill="#c62f22"/><path d="M26 40q10-20 34-20 26 2 32 30l4 60q-4 10-14 10H32q-14-2-14-14z" fill="#ff5a47"/>
<g fill="#ff9e80"><path d="M32 56h48v5H32zM32 66h48v5H32z"/></g><rect x="28" y="80" width="54" height="30" rx="8" fill="#d63b2c"/><path d="M30 88h50" stroke="#ffccbc" stroke-width="4"/>
<path d="M46 20q0-12 12-12t12 13" fill="none" stroke="#5c6bc0" stroke-width="7"/>
""",
    ),
    "chair": (
        """
<g fill="#8d5a2b"><path d="M30 8h9v112h-9zM80 4h9v60h-9z"/><path d="M34 14l50-4v14l-50 4zM34 36l50-4v10l-50 4z"/></g>
<path d="M28 66l58-6 18 14-64 8z" fill="#b97a43"/><g fill="#6f451f"><path d="M40 82h8v40h-8zM96 76h8v42h-8zM80 64h7v44h-7z"/></g>
""",
        """
<g fill="#a86b32"><rect x="38" y="6" width="50" height="16" rx="4"/><rect x="40" y="28" width="46" height="10"/>
<rect x="36" y="6" width="8" height="62"/><rect x="82" y="6" width="8" height="62"/></g><path d="M32 64h60l8 14H24z" fill="#c98b4e"/>
<g fill="#7b4d22"><path d="M26 78h9l-3 44h-8zM90 78h9l4 44h-8zM44 78h6v32h-6zM76 78h6v32h-6z"/></g>
""",
        """
<g fill="#5d4037"><path d="M88 6l9 2-6 112h-8zM42 4l8 1-4 58-8-1z"/><path d="M48 10l44 4-1 12-44-4zM46 30l44 4-1 9-44-4z"/></g>
<path d="M20 72l26-12 44 4-18 16z" fill="#8d6e63"/><g fill="#4e342e"><path d="M20 74h8l2 44h-7zM66 80h8l2 42h-8zM46 66h6v40h-6z"/></g>
""",
        """
<path d="M40 10q24-8 48 2l-4 54H44z" fill="none" stroke="#b5651d" stroke-width="8"/><path d="M56 10l2 54M72 10l-2 54" stroke="#b5651d" stroke-width="5"/>
<ellipse cx="64" cy="72" rx="38" ry="11" fill="#d28b45"/><path d="M34 78l-8 44M94 78l8 44M50 82l-2 34M78 82l2 34" stroke="#8a4b12" stroke-width="7"/>
""",
        """
<path d="M34 8q20-6 44 0l2 26q-22-4-44 0z" fill="#c4894b"/><g fill="#a56d36"><path d="M36 30h8l2 38h-8zM72 32h8v34h-8z"/></g>
<path d="M34 64l36-6 34 12-42 12z" fill="#d9a066"/><path d="M34 64l28 18v8L34 72zM62 82l42-12v8L62 90z" fill="#9b6530"/>
<g fill="#8f5c2b"><path d="M36 72h7l-2 44h-6zM60 88h8l-2 36h-6zM96 78h8l4 36h-7zM72 84h5v18h-5z"/></g>
""",
        """
<g fill="#9a6330"><path d="M44 6h8l4 60h-8zM88 10h8l-4 58h-8z"/></g><path d="M46 6q24 2 50 6l-2 18q-24-6-46-6z" fill="#b87c3f"/><path d="M50 38q20 2 42 6l-1 10q-20-4-40-6z" fill="#b87c3f"/>
<path d="M30 70l24-10 40 6-20 14z" fill="#d8a468"/><path d="M30 70l44 10v9L30 78zM74 80l20-14v9L74 89z" fill="#a76d37"/><path d="M31 78h8l-2 40h-7zM68 88h8l-1 36h-7zM88 76h7l2 36h-7zM50 82h5v26h-5z" fill="#84532a"/>
""",
        """
<path d="M32 10h40q4 0 4 4v26H32z" fill="#cf9450"/><path d="M32 40h7v30h-7zM69 40h7v26h-7zM50 40h6v26h-6z" fill="#a86f38"/>
<path d="M30 66h48l20 12H46z" fill="#e0ab70"/><path d="M46 78h52v8H46zM30 66l16 12v8L30 74z" fill="#a46a33"/><path d="M47 86h7v36h-7zM90 86h7v34h-7zM31 74h6v34h-6zM74 86h5v20h-5z" fill="#8a5828"/>
""",
        """
<path d="M96 10q-22-6-42 2l2 24q20-6 40-2z" fill="#b9804a"/><path d="M56 34h7l-4 34h-7zM88 34h8v34h-8z" fill="#94602f"/><path d="M98 66l-40-6-30 14 44 10z" fill="#d39c60"/>
<path d="M98 66v8L72 92v-8zM28 74v8l44 10v-8z" fill="#99642f"/><path d="M30 82h7l2 36h-7zM66 90h8v34h-8zM90 78h7l-2 36h-6zM54 86h5v20h-5z" fill="#7d4f25"/>
""",
        """
<path d="M40 6h46l-2 22H42z" fill="#bd8347"/><path d="M41 28h8v38h-8zM77 28h8v38h-8z" fill="#9c682f"/><path d="M42 44h42v8H42z" fill="#bd8347"/><path d="M34 66q28-6 58 0l6 14H28z" fill="#dba76b"/>
<path d="M28 80h70v6H28z" fill="#9c682f"/><path d="M30 86h8l-4 36h-7zM88 86h8l4 36h-7zM46 86h5v26h-5zM76 86h5v26h-5z" fill="#815326"/>
""",
        """
<path d="M48 6q22-6 42 0l-2 28q-18-4-38 0z" fill="#c98f52"/><path d="M50 34h7l2 32h-7zM80 34h7l2 30h-7z" fill="#9e6a35"/><path d="M36 70q24-12 56-6l10 10q-26 14-62 8z" fill="#e3b27a"/>
<path d="M36 70l4 12q36 6 62-8v8q-28 14-62 8l-5-11z" fill="#a8723b"/><path d="M40 88h7v32h-6zM92 84h7l3 34h-6zM58 90h5v22h-5zM78 88h5v20h-5z" fill="#8a5a2c"/>
""",
    ),
    "bowl": (
        """
<path d="M8 52h112q-2 44-34 60H42Q10 96 8 52z" fill="#4fa3e0"/><ellipse cx="64" cy="52" rx="56" ry="14" fill="#cfe8fa"/>
<path d="M66 52l40-42 9 8-36 40z" fill="#8fb8d8"/><path d="M42 112h44v8H42z" fill="#2f7fb8"/>
""",
        """
<path d="M10 46h108q0 50-36 66H46Q10 96 10 46z" fill="#5dade2"/><ellipse cx="64" cy="46" rx="54" ry="16" fill="#2e86c1"/>
<ellipse cx="64" cy="49" rx="44" ry="11" fill="#fdf2d0"/><path d="M84 44L120 14" stroke="#5499c7" stroke-width="9" stroke-linecap="round"/>
""",
        """
<path d="M6 56q58 14 116 0-2 40-30 54-28 10-56 0Q8 96 6 56z" fill="#64b5f6"/><path d="M6 56q58-26 116 0-58 16-116 0z" fill="#1e88e5"/>
<path d="M28 50L14 12q8-8 14 2l14 36z" fill="#90caf9"/>
""",
        """
<path d="M14 50h100q-4 46-30 60H44Q18 96 14 50z" fill="#42a5f5"/><path d="M14 50q50-22 100 0-50 18-100 0z" fill="#bbdefb"/>
<path d="M60 50l46-38q10-2 8 8L74 54z" fill="#78909c"/><path d="M24 70q40 12 80 0" stroke="#1565c0" stroke-width="4" fill="none"/>
""",
    ),
    "fish": (
        """
<path d="M8 66Q34 34 78 46l34-20q-6 22-4 38 0 16 6 34L80 84Q36 100 8 66z" fill="#3f8fd0"/><path d="M8 66q34 22 72 6 20-4 28-6 0 16 6 32L80 84Q36 100 8 66z" fill="#a9d6f2"/>
<path d="M46 44q16-22 32-14l4 18zM50 88q8 18 22 16l4-16z" fill="#1d5f9e"/><circle cx="26" cy="60" r="5" fill="#111"/>
""",
        """
<path d="M4 60q30-40 84-6l30-26q6 30 0 60L88 68Q44 98 4 60z" fill="#2f7fc4"/><path d="M8 64q36 28 80 4" stroke="#bfe3f7" stroke-width="12" fill="none"/>
<circle cx="24" cy="54" r="7" fill="#fff"/><circle cx="23" cy="54" r="4" fill="#111"/><path d="M40 46q8 12 0 26" stroke="#17507f" stroke-width="3" fill="none"/>
""",
    ),
    "gift": (
        """
<path d="M10 52l54 16v54L16 106z" fill="#f5a623"/><path d="M118 52L64 68v54l48-16z" fill="#d88912"/><path d="M6 44l58-16 58 16-58 18z" fill="#ffc14d"/>
<path d="M30 58l12 4v52l-12-4zM98 58l-12 4v52l12-4z" fill="#d32f2f"/><path d="M64 40q-40 4-36-18 16-12 36 18zM64 40q40 4 36-18-16-12-36 18z" fill="#e53935"/>
""",
        """
<path d="M18 54h50v66l-50-8z" fill="#ffb300"/><path d="M68 54h44v58l-44 8z" fill="#e08e00"/><path d="M10 40l58 4v16l-56-4zM68 44l52-4-2 16-50 4z" fill="#ffca28"/>
<path d="M36 56h12v61l-12-2zM84 56h10v60l-10 2z" fill="#c62828"/><path d="M66 42Q24 38 34 16q18-6 32 26zM66 42q42-4 32-26-18-6-32 26z" fill="none" stroke="#e53935" stroke-width="9"/>
""",
    ),
    "pear": (
        """
<path d="M64 22q20 2 22 28 2 18 14 30 12 38-36 42-48-4-36-42 12-12 14-30 2-26 22-28z" fill="#b4c926"/><path d="M62 26q-2-14 4-22l6 2q-6 10-4 20z" fill="#7a4b1e"/>
<path d="M46 70q-10 16-4 30" stroke="#dbe86b" stroke-width="7" fill="none" stroke-linecap="round"/>
""",
        """
<path d="M60 24q22-4 26 22 2 20 16 34 12 40-38 42-52-2-38-44 14-12 14-28 2-22 20-26z" fill="#9cc11d"/><path d="M64 26q0-14 8-20" stroke="#5b3a1a" stroke-width="6" fill="none"/>
<path d="M90 84q6 18-10 28" stroke="#7fa313" stroke-width="6" fill="none"/>
""",
    ),
    "robot": (
        """
<rect x="22" y="34" width="84" height="80" rx="8" fill="#90a4ae"/><path d="M60 34V14h8v20z" fill="#78909c"/><circle cx="64" cy="12" r="9" fill="#e53935"/>
<path d="M6 56h14v34H6zM108 56h14v34h-14z" fill="#c62828"/><circle cx="46" cy="60" r="11" fill="#fff"/><circle cx="82" cy="60" r="11" fill="#fff"/>
<path d="M64 70l7 12H57z" fill="#e53935"/><rect x="38" y="90" width="52" height="12" fill="#fff"/><path d="M50 90v12M62 90v12M74 90v12" stroke="#546e7a" stroke-width="3"/>
""",
        """
<path d="M26 40q0-12 14-12h48q14 0 14 12l4 70q0 10-12 10H34q-12 0-12-10z" fill="#b0bec5"/><path d="M64 28V6" stroke="#607d8b" stroke-width="6"/><circle cx="64" cy="8" r="7" fill="#f44336"/>
<rect x="8" y="60" width="14" height="26" rx="4" fill="#ef5350"/><rect x="106" y="60" width="14" height="26" rx="4" fill="#ef5350"/>
<g fill="#fff" stroke="#455a64" stroke-width="4"><circle cx="46" cy="58" r="10"/><circle cx="82" cy="58" r="10"/><rect x="36" y="92" width="56" height="14" rx="4"/></g>
<path d="M58 82l6-12 6 12z" fill="#d32f2f"/>
""",
    ),
    "octopus": (
        """
<g fill="none" stroke="#ff6f5e" stroke-width="10" stroke-linecap="round"><path d="M50 76Q22 70 22 40q0-16-8-24M54 84Q24 92 10 76q-6-10 2-14M56 92q-14 22-36 24-10 0-8-8"/>
<path d="M66 96q0 18-14 24M78 94q14 16 30 14 10-2 8-10M84 86q18 4 30-6"/></g>
<path d="M46 74q-8-26 12-42 26-16 48 2 18 20-2 42-14 26-36 24-18-4-22-26z" fill="#ff5a52"/><path d="M104 34q16 14 2 40-14 18-14-4-2-26 12-36z" fill="#a8231d"/>
<g stroke="#ffc2a8" stroke-width="3" stroke-dasharray="3 5" fill="none"><path d="M47 72Q26 66 26 40M50 86Q26 94 14 78M60 94q-16 20-38 20"/></g>
<circle cx="76" cy="56" r="7" fill="#2b1a1a"/><path d="M62 74q8-6 16 0" stroke="#a8231d" stroke-width="4" fill="none"/>
""",
        """
<g fill="none" stroke="#f4523f" stroke-width="11" stroke-linecap="round"><path d="M52 80Q20 78 16 46 14 26 24 14M50 88Q22 104 8 88M58 96q-6 20-26 26M72 98q4 16-6 24M84 92q12 20 30 18M88 82q20 0 30-16"/></g>
<path d="M44 80q-4-30 18-44 24-16 46-2 16 18-2 40-10 26-34 28-24 0-28-22z" fill="#e8382e"/><path d="M66 34q8-14 26-10 16 4 16 18-16-14-42-8z" fill="#b3201a"/>
<circle cx="68" cy="60" r="9" fill="#ffe0d0"/><circle cx="67" cy="60" r="5" fill="#111"/><circle cx="92" cy="56" r="6" fill="#ffe0d0"/><circle cx="92" cy="56" r="4" fill="#111"/>
<path d="M74 80q8-4 12 0-4 10-12 0z" fill="#7a1410"/>
""",
        """
<g fill="none" stroke="#ff8466" stroke-width="9" stroke-linecap="round"><path d="M78 74q26-6 28-36 0-14 10-20M80 82q24 10 38-4M76 92q12 22 34 22M62 98q-2 16 12 24M50 94q-12 16-30 12-10-4-6-12M42 86q-16 2-30-10M40 74Q18 64 14 42"/></g>
<path d="M82 72q8-26-14-42-24-12-46 2-16 20 4 42 12 26 34 26 18-4 22-28z" fill="#ff6b4d"/><path d="M20 36q-12 20 4 38 16 10 12-10-2-22-16-28z" fill="#c23a22"/>
<circle cx="50" cy="54" r="7" fill="#221111"/><path d="M52 74q8-6 14 0" stroke="#a82d18" stroke-width="4" fill="none"/>
""",
        """
<g fill="none" stroke="#ff5f63" stroke-width="10" stroke-linecap="round"><path d="M48 70Q34 52 34 32q0-18-12-20-12 2-8 14M46 80Q18 86 10 66M50 90q-16 20-36 18-8-4-4-12M62 96q-4 20 8 24M74 94q6 18 24 22M86 86q14 10 30 2"/></g>
<path d="M42 72q0-28 24-38 28-10 48 12 10 22-14 38-10 16-32 16-24-4-26-28z" fill="#ff4d55"/><path d="M96 36q18 4 20 24-8 20-22 16 14-18 2-40z" fill="#8e1c22"/>
<g fill="#ffd0c4"><circle cx="30" cy="36" r="2"/><circle cx="34" cy="48" r="2"/><circle cx="40" cy="60" r="2"/><circle cx="22" cy="74" r="2"/><circle cx="34" cy="80" r="2"/><circle cx="26" cy="104" r="2"/><circle cx="38" cy="98" r="2"/></g>
<ellipse cx="82" cy="60" rx="6" ry="8" fill="#1d1010"/><path d="M64 78q6-8 14-2-4 8-14 2z" fill="#8e1c22"/>
""",
        """
<g fill="#f2604a"><path d="M52 84Q16 84 12 44q0-20 12-28 8 2 4 10-8 20 4 36 12 10 26 6zM50 92q-20 18-42 6-4-8 4-8 16 4 32-12zM58 98q-4 22-30 24-6-6 2-8 12-2 14-20zM70 98q10 18 0 26-10-2-4-10l-4-16zM82 94q16 16 34 10 4-8-6-8-12 0-18-12zM88 84q18 4 32-14 0-8-8-2-12 8-22 4z"/></g>
<path d="M44 78q0-30 22-42 26-10 42 8 10 20-8 36-10 20-32 22-22-2-24-24z" fill="#ef4a3a"/><path d="M100 36q16 14 4 36-8 6-10-4 6-16 6-32z" fill="#9c2218"/>
<circle cx="72" cy="62" r="6" fill="#20100e"/><circle cx="90" cy="60" r="5" fill="#20100e"/><path d="M74 78h12" stroke="#9c2218" stroke-width="4"/>
""",
    ),
    "penguin": (
        """
<path d="M60 8q28 0 30 30 18 24 14 56-4 22-40 22T24 94q-4-32 8-54Q34 8 60 8z" fill="#37424a"/><path d="M60 50q30 4 28 42-2 20-24 20t-24-20q0-38 20-42z" fill="#fff"/>
<ellipse cx="52" cy="34" rx="16" ry="14" fill="#fff"/><circle cx="50" cy="32" r="4" fill="#111"/><path d="M40 38l-18 6 16 6z" fill="#ffa000"/>
<path d="M40 114h20v8H36zM70 114h20l4 8H70z" fill="#ffa000"/><path d="M96 50q18 20 14 40l-10-8z" fill="#263238"/>
""",
        """
<path d="M66 6q24 2 26 34 14 30 8 60-6 20-36 18-34 2-36-24 0-30 12-52Q42 6 66 6z" fill="#455a64"/><path d="M58 44q26 10 24 48-4 22-22 20-22 0-22-24 2-34 20-44z" fill="#eceff1"/>
<circle cx="60" cy="26" r="5" fill="#fff"/><circle cx="59" cy="26" r="3" fill="#111"/><path d="M46 28L22 36l22 6z" fill="#ffb300"/>
<path d="M30 58Q12 78 16 98l14-10z" fill="#37474f"/><path d="M44 114l-12 8h26zM76 114l-6 8h24z" fill="#ff8f00"/>
""",
    ),
    "teddy": (
        """
<g fill="#a9713f"><circle cx="38" cy="20" r="14"/><circle cx="90" cy="20" r="14"/><circle cx="64" cy="38" r="32"/><ellipse cx="64" cy="90" rx="32" ry="30"/>
<ellipse cx="24" cy="78" rx="13" ry="20"/><ellipse cx="104" cy="78" rx="13" ry="20"/></g><g fill="#d7a873"><circle cx="30" cy="112" r="15"/><circle cx="98" cy="112" r="15"/>
<ellipse cx="64" cy="48" rx="14" ry="11"/><ellipse cx="64" cy="92" rx="18" ry="17"/></g><g fill="#2b1a10"><circle cx="52" cy="34" r="4"/><circle cx="76" cy="34" r="4"/><ellipse cx="64" cy="44" rx="6" ry="4"/></g>
""",
        """
<g fill="#c58c52"><circle cx="36" cy="24" r="12"/><circle cx="92" cy="24" r="12"/><ellipse cx="64" cy="42" rx="36" ry="28"/><path d="M36 66h56q14 20 10 48H26q-4-28 10-48z"/></g>
<path d="M34 72L12 92l12 12 16-14zM94 72l22 20-12 12-16-14z" fill="#a66f3a"/><g fill="#efd0a2"><ellipse cx="40" cy="114" rx="16" ry="11"/><ellipse cx="88" cy="114" rx="16" ry="11"/>
<ellipse cx="64" cy="52" rx="15" ry="11"/></g><g fill="#222"><circle cx="50" cy="36" r="4"/><circle cx="78" cy="36" r="4"/><circle cx="64" cy="48" r="5"/></g>
""",
    ),
    "chicken": (
        """
<path d="M40 34q28-16 50 8 14 20 26 70l-12-8-10 12-12-10-14 12-12-12-14 8 2-40q-20-12-4-40z" fill="#e6e6ea"/><path d="M40 32q-8-22 8-22 2-12 14-6 14-4 14 8 14 0 10 16z" fill="#e53935"/>
<path d="M36 44L8 58l26 10z" fill="#ffa000"/><path d="M32 68q-12 16 2 24 12-4 8-22z" fill="#d32f2f"/><circle cx="52" cy="48" r="5" fill="#111"/>
""",
        """
<path d="M30 40Q44 22 66 26q30 8 34 48l14 44-14-8-12 10-14-10-14 10-12-10-12 6 4-36Q24 66 30 40z" fill="#f5f5f7"/><path d="M38 28Q30 8 48 10q6-10 16-2 14-2 12 18-20-8-38 2z" fill="#f44336"/>
<path d="M30 48L4 56q10 14 28 10z" fill="#fb8c00"/><circle cx="48" cy="46" r="6" fill="#fff" stroke="#bbb"/><circle cx="47" cy="46" r="4" fill="#222"/><path d="M30 68q-8 14 4 20 8-6 4-20z" fill="#c62828"/>
""",
    ),
}
