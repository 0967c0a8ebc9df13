// An image, the attention of one word over it, and a slider for the steps. Its value: {image, prompt, words, labels, high, trace}.
let word = 0, moment = 0, shown = "";

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function paint() {
  const now = props.value, heat = element.querySelector(".ll-heat"), said = element.querySelector(".ll-said");
  const entry = word === null ? null : now.words[word];
  element.querySelector("figure").classList.toggle("looking", Boolean(entry));
  element.querySelectorAll(".ll-chip").forEach((chip, i) => chip.setAttribute("aria-pressed", i === word));
  heat.hidden = !entry;
  if (entry) heat.src = entry.frames[moment];
  const text = entry ? `Attention to \u201c${entry.word}\u201d, ${now.labels[moment]}` : "The image";
  heat.alt = text;
  said.textContent = text;
}

function chips(now) {
  const group = make("div", "ll-chips");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Words of the prompt");
  let kept = word;
  now.words.forEach((entry, i) => {
    const chip = make("button", "ll-chip word", entry.word.replace(/#\d+$/, ""));
    chip.type = "button";
    const look = () => { word = i; paint(); };
    chip.addEventListener("mouseenter", look);
    chip.addEventListener("focus", look);
    chip.addEventListener("click", () => { kept = kept === i ? null : i; word = kept; paint(); });
    chip.addEventListener("mouseleave", () => { word = kept; paint(); });
    group.append(chip);
  });
  return group;
}

function slider(now) {
  const label = make("label", "ll-moment", "Step"), field = make("input");
  field.type = "range"; field.min = 0; field.max = now.labels.length - 1; field.value = moment;
  field.setAttribute("aria-label", "Step of the generation; at the left the mean of all steps");
  field.addEventListener("input", () => {
    moment = Number(field.value);
    field.setAttribute("aria-valuetext", now.labels[moment]);
    paint();
  });
  label.append(field);
  return label;
}

function render() {
  const now = props.value, root = element.querySelector(".ll-overlay");
  if (!now || !now.image) {
    root.replaceChildren(make("div", "ll-empty", "The image and the attention of its words will be here."));
    return;
  }
  const figure = make("figure"), frame = make("div", "ll-frame"), image = make("img"), heat = make("img", "ll-heat");
  image.src = now.image;
  image.alt = now.prompt ? `The image of \u201c${now.prompt}\u201d` : "The unfinished image";
  frame.append(image, heat);
  figure.append(frame);
  if (!now.words.length) {
    heat.remove();
    root.replaceChildren(figure);
    return;
  }
  word = now.words.findIndex((entry) => !/^(a|an|the)$/i.test(entry.word));
  word = Math.max(word, 0); moment = 0;
  const said = make("figcaption", "ll-said"), scale = make("div", "ll-scale");
  said.setAttribute("aria-live", "polite");
  scale.append(make("span", "", "0"), make("i"), make("span", "", String(now.high)));
  scale.setAttribute("aria-label", `Colors from 0 to ${now.high} of the attention`);
  figure.append(said, scale);
  root.replaceChildren(chips(now), figure, slider(now));
  if (now.trace) {
    const curves = make("img", "ll-trace");
    curves.src = now.trace;
    curves.alt = "Curves over the guided steps: the loss, and the presence of each subject";
    root.append(make("h2", "", "What guidance did"), curves);
  }
  paint();
}

watch("value", () => {
  const now = JSON.stringify(props.value);
  if (now !== shown) { shown = now; render(); }
});
render();
