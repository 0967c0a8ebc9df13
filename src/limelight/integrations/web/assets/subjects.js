// The words of a prompt as buttons, and a canvas for boxes. Its value: {words, chosen, boxes, shape}.
const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];
const EDGES = ["Left", "Top", "Right", "Bottom"];
let open = false, active = null, mine = "";

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

const state = () => props.value || { words: [], chosen: null, boxes: {}, shape: 1 };
const nouns = (now) => now.words.filter((word) => word.kind === "noun").map((word) => word.name);
const chosen = (now) => now.chosen || nouns(now);
const color = (now, name) => COLORS[Math.max(chosen(now).indexOf(name), 0) % COLORS.length];

function change(next, focus) {
  props.value = { ...state(), ...next };
  mine = JSON.stringify(props.value);
  trigger("change");
  render();
  if (focus) element.querySelector(focus)?.focus();
}

function toggle(name) {
  const now = state(), before = chosen(now), boxes = { ...now.boxes };
  const there = before.includes(name);
  if (there) delete boxes[name];
  if (there && active === name) active = null;
  const order = now.words.map((word) => word.name);
  const after = there ? before.filter((other) => other !== name) : [...before, name];
  after.sort((a, b) => order.indexOf(a) - order.indexOf(b));
  change({ chosen: after, boxes }, `[data-name="${CSS.escape(name)}"]`);
}

function chips(now) {
  const group = make("div", "ll-chips");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Subjects to guide");
  for (const word of now.words) {
    const on = chosen(now).includes(word.name), chip = make("button", `ll-chip ${word.kind}`);
    chip.type = "button";
    chip.dataset.name = word.name;
    chip.setAttribute("aria-pressed", on);
    chip.append(make("span", "ll-noun", word.text));
    if (word.modifiers.length) chip.append(make("span", "ll-modifiers", word.modifiers.join(" ")));
    if (on) chip.style.setProperty("--chip", color(now, word.name));
    chip.addEventListener("click", () => toggle(word.name));
    group.append(chip);
  }
  return group;
}

function place(name, box) {
  change({ chosen: chosen(state()), boxes: { ...state().boxes, [name]: box } });
}

function canvas(now) {
  const stage = make("div", "ll-stage");
  stage.style.aspectRatio = now.shape;
  stage.setAttribute("aria-hidden", "true"); // the numbers below say and set the same
  for (const [name, box] of Object.entries(now.boxes)) {
    const shown = make("div", "ll-box", name), [left, top, right, bottom] = box.map((edge) => 100 * edge);
    shown.style.cssText =
      `left:${left}%;top:${top}%;width:${right - left}%;height:${bottom - top}%;--chip:${color(now, name)}`;
    stage.append(shown);
  }
  stage.addEventListener("pointerdown", (event) => draw(stage, event));
  return stage;
}

function draw(stage, begin) {
  begin.preventDefault();
  const name = active || chosen(state()).find((other) => !state().boxes[other]) || chosen(state())[0];
  if (!name) return;
  const area = stage.getBoundingClientRect(), rubber = make("div", "ll-box", name);
  const share = (value, start, size) => Math.round(100 * Math.min(Math.max((value - start) / size, 0), 1)) / 100;
  const at = (event) => [share(event.clientX, area.left, area.width), share(event.clientY, area.top, area.height)];
  const [x, y] = at(begin);
  let box = null;
  rubber.style.setProperty("--chip", color(state(), name));
  stage.append(rubber);
  stage.setPointerCapture(begin.pointerId);
  stage.onpointermove = (event) => {
    const [a, b] = at(event);
    box = [Math.min(x, a), Math.min(y, b), Math.max(x, a), Math.max(y, b)];
    rubber.style.cssText += `left:${100 * box[0]}%;top:${100 * box[1]}%;width:${100 * (box[2] - box[0])}%;` +
      `height:${100 * (box[3] - box[1])}%`;
  };
  stage.onpointerup = stage.onpointercancel = () => {
    stage.onpointermove = stage.onpointerup = stage.onpointercancel = null;
    rubber.remove();
    if (box && box[2] - box[0] >= 0.05 && box[3] - box[1] >= 0.05) place(name, box);
  };
}

function numbers(now, name) {
  const row = make("div", "ll-edges"), title = make("button", "ll-pick", name), box = now.boxes[name];
  title.type = "button";
  title.style.setProperty("--chip", color(now, name));
  title.setAttribute("aria-pressed", active === name);
  title.title = `Draw the box of ${name} next`;
  title.addEventListener("click", () => { active = name; render(); });
  row.append(title);
  EDGES.forEach((edge, i) => {
    const label = make("label", "", edge), field = make("input");
    field.type = "number"; field.min = 0; field.max = 100; field.step = 1;
    field.setAttribute("aria-label", `${edge} edge of the box of ${name}, percent`);
    field.value = box ? Math.round(100 * box[i]) : "";
    field.addEventListener("change", () => {
      const next = [...(state().boxes[name] || [0, 0, 1, 1])];
      next[i] = Math.min(Math.max(Number(field.value) / 100, 0), 1);
      place(name, next);
    });
    label.append(field);
    row.append(label);
  });
  const clear = make("button", "ll-clear", "\u00d7");
  clear.type = "button";
  clear.disabled = !box;
  clear.setAttribute("aria-label", `Remove the box of ${name}`);
  clear.addEventListener("click", () => {
    const boxes = { ...state().boxes };
    delete boxes[name];
    change({ boxes });
  });
  row.append(clear);
  return row;
}

function render() {
  const now = state(), root = element.querySelector(".ll-subjects");
  const fold = make("details", "ll-place"), title = make("summary", "", "Place subjects in boxes");
  const hint = "Drag on the area to place a subject, or type the edges in percent.";
  root.replaceChildren(make("p", "ll-label", "Subjects: press a word to guide it or to leave it out"), chips(now), fold);
  fold.open = open;
  fold.addEventListener("toggle", () => { open = fold.open; });
  fold.append(title, make("p", "ll-hint", hint), canvas(now), ...chosen(now).map((name) => numbers(now, name)));
}

watch("value", () => { if (JSON.stringify(props.value) !== mine) { active = null; render(); } });
render();
