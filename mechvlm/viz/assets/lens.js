// The logit lens: tints over the picture or the positions, and one cell's words by layer.
MechVLM.kinds.lens = (plot, spec, output, figure) => {
  const { el, say } = MechVLM;
  const nLayers = spec.layers.labels.length, n = spec.positions.labels.length;

  function whole(packed) {
    const raw = MechVLM.bytes(packed.data);
    return packed.bytes === 2 ? new Uint16Array(raw.buffer) : new Uint32Array(raw.buffer);
  }

  const index = whole(spec.index), probability = MechVLM.decode(spec.probability), k = spec.k;
  const given = { name: spec.sought.name, members: new Set(spec.sought.members),
    ranks: spec.sought.ranks && whole(spec.sought.ranks), deepest: spec.sought.deepest };
  let sought = given, likeliest = 0;
  for (let i = 0; i < index.length; i += k) likeliest = Math.max(likeliest, probability[i]);
  const lower = spec.words.map((word) => word.toLowerCase());

  const model = {
    layers: spec.layers, positions: spec.positions, quiet: spec.quiet, words: spec.words, picture: spec.picture,
    cells: spec.picture ? Array.from(whole(spec.picture.cells)) : [], k, index, probability,
    colour: MechVLM.palette(spec.scale),
    at: (layer, place, i) => (layer * n + place) * k + i,
    word: (layer, place, i) => spec.words[index[(layer * n + place) * k + i]],
    seeking: () => sought.name !== "",
    isSought: (word) => sought.members.has(word),
    rank(layer, place) {
      if (sought.ranks) return sought.ranks[layer * n + place];
      for (let i = 0; i < k; i++) if (sought.members.has(index[(layer * n + place) * k + i])) return i + 1;
      return 0;
    },
    share(layer, place) {
      if (!sought.name) return probability[(layer * n + place) * k] / (likeliest || 1);
      const rank = model.rank(layer, place);
      return rank ? 1 - Math.log(rank) / Math.log(sought.deepest) : 0;
    },
    rankWords(layer, place) {
      const rank = model.rank(layer, place);
      return rank ? rank.toLocaleString("en").replaceAll(",", "\u2009") : sought.ranks ? "" : "> " + k;
    },
    percent: (p) => (p > 0 && p < 1e-4 ? "< 0.01 %" : MechVLM.number(100 * p) + " %"),
    where(place) {
      const i = model.cells.indexOf(place), label = "position " + spec.positions.labels[place];
      if (i >= 0) {
        const cols = spec.picture.grid[2];
        return `image row ${Math.floor(i / cols)}, col ${i % cols} · ${label}`;
      }
      const token = spec.positions.tokens.length && !spec.quiet[place] ? ` · “${spec.positions.tokens[place]}”` : "";
      return label + token + " · " + MechVLM.groupAt(spec.positions, place);
    },
  };

  let [layer, place] = spec.start, pinned = false;
  const inPicture = new Set(model.cells);
  const beside = spec.picture ? [...Array(n).keys()].filter((i) => !inPicture.has(i) && !spec.quiet[i]) : [];
  const views = [spec.picture ? MechVLM.kinds.lens_picture(model) : MechVLM.kinds.lens_plane(model)];
  if (beside.length) views.push(MechVLM.kinds.lens_tokens(model, beside));
  const table = MechVLM.kinds.lens_table(model, {
    layer: (at) => choose({ layer: at }),
    word: (at, i) => seek(model.word(at, place, i)),
    read: (at, i) => tell(at, i),
  });

  // --- controls ----------------------------------------------------------------------
  const legend = el("div", "mv-bar"), strip = el("div", "mv-strip"), ends = el("div", "mv-ends"), means = el("div", "mv-units");
  legend.append(strip, ends, means);
  figure.querySelector("figcaption").after(legend);
  const form = el("label", "mv-lens-seek"), field = el("input"), found = el("div", "mv-lens-found");
  Object.assign(field, { type: "search", placeholder: "a word", value: given.name, spellcheck: false, size: 12 });
  form.append(el("span", "", "seek"), field);
  const common = el("div", "mv-lens-common");
  const slide = el("label", "mv-slide"), range = el("input"), name = el("span"), bars = el("canvas", "mv-lens-bars");
  Object.assign(range, { type: "range", min: 0, max: nLayers - 1, step: 1, value: layer });
  const track = el("div", "mv-lens-track");
  track.append(bars, range);
  slide.append(name, track);

  function dress() {
    strip.style.background = `linear-gradient(to right,${(MechVLM.dark ? spec.scale.dark : spec.scale.light).join(",")})`;
    const low = !sought.name ? "0" : sought.ranks ? String(sought.deepest) : "> " + k;
    ends.replaceChildren(el("span", "", low), el("span", "", sought.name ? "1" : model.percent(likeliest)));
    means.textContent = sought.name ? `rank of “${MechVLM.shortened(sought.name, 20)}”, log scale` : "probability of the best word";
  }

  const overview = spec.picture ? model.cells : [...Array(n).keys()]; // what is counted
  let levels = [];

  // Per layer, the mean tint: where along the stream the word is there at all.
  function average() {
    levels = spec.layers.labels.map((_, l) => overview.reduce((sum, at) => sum + model.share(l, at), 0) / overview.length);
  }

  function profile() {
    const wide = range.clientWidth || 200, high = 26, sharp = window.devicePixelRatio || 1;
    Object.assign(bars, { width: wide * sharp, height: high * sharp });
    bars.style.width = wide + "px";
    const pen = bars.getContext("2d"), most = Math.max(...levels) || 1, step = nLayers > 1 ? (wide - 16) / (nLayers - 1) : 0;
    const thick = Math.max(2, Math.min(14, 0.7 * step)), here = MechVLM.colour("accent"), rest = MechVLM.colour("rule");
    pen.scale(sharp, sharp);
    levels.forEach((mean, l) => {
      const tall = Math.max(1, (mean / most) * (high - 2));
      pen.fillStyle = l === layer ? here : rest;
      pen.fillRect(8 + l * step - thick / 2, high - tall, thick, tall);
    });
  }

  // What this layer's best words are, most frequent first.
  function often() {
    const counts = new Map();
    for (const at of overview) {
      const word = model.word(layer, at, 0);
      counts.set(word, (counts.get(word) || 0) + 1);
    }
    const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 8);
    common.replaceChildren(el("span", "mv-faint", "best words here"), ...most.map(([word, count]) => {
      const chip = el("button", "mv-lens-often", MechVLM.shortened(word, 18));
      chip.type = "button";
      chip.append(el("small", "", "×" + count));
      chip.setAttribute("aria-pressed", word.toLowerCase() === sought.name.toLowerCase());
      chip.addEventListener("click", () => seek(word.toLowerCase() === sought.name.toLowerCase() ? "" : word));
      return chip;
    }));
  }

  function seek(word) {
    const wanted = word.trim().toLowerCase();
    field.value = word;
    if (wanted === given.name.toLowerCase()) sought = given;
    else {
      const members = new Set();
      if (wanted) lower.forEach((each, i) => each === wanted && members.add(i));
      sought = { name: word.trim(), members, ranks: null, deepest: k + 1 };
    }
    average();
    dress();
    repaint();
  }

  function count() {
    if (!sought.name) return (found.textContent = "");
    const top = overview.filter((at) => { const r = model.rank(layer, at); return r && r <= k; }).length;
    const noun = spec.picture ? "cells" : "positions";
    found.textContent = `among the best ${k} in ${top} of ${overview.length} ${noun} at layer ${spec.layers.labels[layer]}`;
  }

  // --- state -------------------------------------------------------------------------
  function repaint() {
    for (const view of views) view.paint(layer);
    profile();
    often();
    count();
    mark();
  }

  function mark() {
    for (const view of views) view.mark(layer, place, pinned);
    range.value = layer;
    name.textContent = "layer " + spec.layers.labels[layer];
    table.fill(place, layer);
    tell(layer, 0);
  }

  function tell(at, i) {
    const parts = model.seeking() ? [{ value: "rank " + (model.rankWords(at, place) || "not known") }] : [];
    parts.push({ token: model.word(at, place, i) }, { value: model.percent(probability[model.at(at, place, i)]) });
    parts.push("layer " + spec.layers.labels[at], ...model.where(place).split(" · "));
    say(output, pinned ? [...parts, "pinned: click again to let go"] : parts);
  }

  function choose(to) {
    const turned = to.layer !== undefined && to.layer !== layer;
    if (!turned && (to.place === undefined || to.place === place)) return;
    layer = to.layer ?? layer;
    place = to.place ?? place;
    if (turned && spec.picture) return repaint();
    if (turned) { profile(); often(); count(); }
    mark();
  }

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  for (const view of views) {
    view.node.addEventListener("pointermove", (event) => {
      const to = pinned ? null : view.at(event);
      if (to) choose(to);
    });
    view.node.addEventListener("click", (event) => {
      const to = view.at(event);
      if (!to) return;
      pinned = !(pinned && to.place === place && (to.layer ?? layer) === layer);
      choose(to);
      mark();
    });
    view.node.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { pinned = false; return mark(); }
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pinned = !pinned; return mark(); }
      const page = { PageUp: 1, PageDown: -1 }[event.key];
      if (!page && !moves[event.key]) return;
      event.preventDefault();
      if (page) choose({ layer: Math.min(nLayers - 1, Math.max(0, layer + page)) });
      else choose(view.step(layer, place, ...moves[event.key]));
    });
  }
  range.addEventListener("input", () => choose({ layer: Number(range.value) }));
  field.addEventListener("input", () => seek(field.value));

  const stage = el("div", "mv-stage mv-lens"), left = el("div", "mv-left"), tools = el("div", "mv-lens-tools");
  tools.append(form, found);
  left.append(...views.map((view) => view.node), slide, common, tools);
  stage.append(left, table.node);
  plot.setAttribute("role", "group");
  plot.removeAttribute("tabindex");
  plot.append(stage);
  average();
  return (width) => {
    const narrow = width < 680 || !spec.picture;
    const room = narrow ? width : Math.min(460, width * 0.44);
    left.style.width = (spec.picture ? Math.min(room, 460) : width) + "px";
    for (const view of views) view.resize(room);
    dress();
    repaint();
  };
};
