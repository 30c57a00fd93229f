// A circuit: nodes in rows from tokens up to the logits, edges as thick as effects.
MechVLM.kinds.circuit = (plot, spec, output, figure) => {
  const { el, svg, say, number, arcs } = MechVLM;
  const { nodes, edges } = spec, [wide, tall] = spec.size, LEFT = 64, TOP = 6, NAMED = 5, FEW = 20;
  const colour = MechVLM.palette(spec.scale), known = (edge) => edge.effect !== null;
  const labels = edges.map((edge) => nodes[edge.from].name + " → " + edge.takes);
  const ports = { q: -0.3, k: 0, v: 0.3 };
  let shown = spec.shown, chosen = null, boxes = [], ways = [];

  const ink = (edge) => (known(edge) ? arcs.css(colour(arcs.shade(edge.effect, spec.full || 1))) : "var(--faint)");
  const thick = (edge) => Math.max(spec.hair, edge.width || 0);
  const up = (at) => at.map((v, i) => (i % 2 ? tall - v : v));

  // -- what is around the drawing ------------------------------------------------------
  const count = el("span", "mv-count"), range = el("input");
  let marks = null;
  function legend(scale) { // as large as the edges are drawn
    if (!spec.marks.length) return;
    const sizes = spec.marks.map((value) => ({
      value: number(value),
      width: (Math.abs(value) / spec.full) * Math.max(...edges.map((edge) => edge.width || 0)) * scale,
      colour: () => arcs.css(colour(arcs.shade(value, spec.full))),
    }));
    const made = arcs.legend(sizes, spec.units);
    if (marks) marks.replaceWith(made);
    else plot.previousElementSibling.before(made);
    marks = made;
  }

  function controls() {
    const slide = el("label", "mv-slide");
    Object.assign(range, { type: "range", min: 1, max: edges.length, step: 1, value: shown });
    if (spec.known && edges.length > FEW) slide.append(range);
    slide.prepend(count);
    plot.before(slide);
    if (spec.found_by) plot.after(el("div", "mv-faint", spec.found_by));
  }

  function counted() {
    const total = spec.total.toLocaleString("en"), n = shown.toLocaleString("en");
    let text = shown < spec.total ? `${n} of ${total} edges shown` : `all ${total} edges shown`;
    if (!spec.known) return text + "; what single edges do is not known, so all are equally thin";
    const last = edges[shown - 1];
    if (shown < spec.total && known(last)) text += `, the strongest (from ${number(Math.abs(last.effect))})`;
    if (shown === edges.length && shown < spec.total) text += "; this page has no more";
    const odd = edges.slice(0, shown).filter((edge) => !known(edge)).length;
    return odd ? text + `; ${odd} of unknown effect are dashed` : text;
  }

  // -- drawing -------------------------------------------------------------------------
  function drawNode(node, i) {
    const group = svg("g", { "data-node": i, style: "cursor:pointer" });
    const fill = { logits: "var(--ink)", tokens: "var(--card)", mlp: "var(--card)" }[node.kind] || "var(--paper)";
    const edge = node.kind === "head" || node.kind === "logits" ? "var(--ink)" : "var(--faint)";
    const y = tall - node.y, head = node.kind === "head";
    group.append(
      svg("title", {}, node.full),
      svg("rect", { x: node.x - node.w / 2, y: y - node.h / 2, width: node.w, height: node.h, rx: node.kind === "mlp" ? 12 : 5, fill, stroke: edge }),
      svg("text", { x: node.x, y: y + (head ? 0 : 4), "text-anchor": "middle", style: node.kind === "logits" ? "fill:var(--paper)" : "" }, node.name));
    for (const port of node.ports)
      group.append(svg("text", { x: node.x + ports[port] * node.w, y: y + 12, "text-anchor": "middle", class: "mv-port", "data-port": port }, port));
    return group;
  }

  function drawEdge(edge, i) {
    const d = arcs.rising(up(edge.at)), group = svg("g", { "data-edge": i });
    const line = svg("path", { d, fill: "none", stroke: ink(edge), "stroke-width": thick(edge), class: "mv-way" });
    if (spec.known && !known(edge)) line.setAttribute("stroke-dasharray", "3 3");
    group.append(line, svg("path", { d, fill: "none", stroke: "transparent", "stroke-width": Math.max(9, thick(edge)), "pointer-events": "stroke" }));
    return group;
  }

  function backdrop(layer, span) {
    spec.bands.forEach(([, low, high], i) => {
      if (i % 2 === 0) layer.append(svg("rect", { x: -LEFT, y: tall - high, width: span, height: high - low, fill: "var(--card)" }));
    });
  }

  // Names of layers stay where they are while the drawing below them scrolls.
  function bandNames(scale, height) {
    const over = svg("svg", { class: "mv-text mv-over", width: LEFT * scale, height: height * scale, viewBox: `0 0 ${LEFT} ${height}`, "aria-hidden": "true" });
    for (const [name, low, high] of spec.bands)
      over.append(svg("text", { x: 6, y: TOP + tall - (low + high) / 2 + 4, class: "mv-faint mv-halo" }, name));
    return over;
  }

  function redraw(room) {
    const scale = Math.min(1.1, Math.max(0.8, room / (wide + LEFT + 8))), span = Math.max(wide + LEFT + 8, room / scale);
    const free = (span - LEFT - 8 - wide) / 2, height = tall + 2 * TOP;
    const scroller = el("div", "mv-scroll");
    const layer = svg("svg", { class: "mv-text mv-graph", width: span * scale, height: height * scale, viewBox: `0 0 ${span} ${height}`, "aria-hidden": "true" });
    const ground = svg("g", { transform: `translate(${LEFT} ${TOP})` }), inner = svg("g", { transform: `translate(${LEFT + free} ${TOP})` });
    backdrop(ground, span);
    ways = edges.map(drawEdge);
    boxes = nodes.map(drawNode);
    const served = spec.served.map(([a, b]) => svg("line", {
      x1: nodes[a].x, y1: tall - nodes[a].y - nodes[a].h / 2, x2: nodes[b].x, y2: tall - nodes[b].y + nodes[b].h / 2,
      stroke: "var(--faint)", "stroke-dasharray": "1 3", "data-served": a,
    }));
    inner.append(...ways.slice().reverse(), ...served, ...boxes);
    layer.append(ground, inner);
    scroller.append(layer);
    const old = plot.firstChild, at = old ? old.scrollLeft : (span * scale - room) / 2;
    plot.replaceChildren(scroller, bandNames(scale, height));
    scroller.scrollLeft = at;
    boxes.forEach((box, i) => arcs.fit(box.querySelector("text"), nodes[i].w - 6));
    legend(scale);
    light();
  }

  // -- what is lit ---------------------------------------------------------------------
  const isShown = (i) => i < shown;
  // A head takes by the inputs that it shares with others too.
  const takers = (node) => [node, ...spec.served.filter(([, head]) => head === node).map(([taker]) => taker)];
  const heads = (taker) => spec.served.filter(([own]) => own === taker).map(([, head]) => head);
  const touches = (i, node) => edges[i].from === node || takers(node).includes(edges[i].to);
  const isLit = (i) => !chosen || (chosen.edge === undefined ? touches(i, chosen.node) : i === chosen.edge);

  function light() {
    const used = new Set(), lit = new Set(), taken = new Set();
    edges.forEach((edge, i) => {
      ways[i].style.display = isShown(i) ? "" : "none";
      const on = isShown(i) && isLit(i);
      ways[i].classList.toggle("mv-out", !on);
      if (isShown(i)) [edge.from, edge.to, ...heads(edge.to)].forEach((end) => used.add(end));
      if (isShown(i)) taken.add(edge.to + edge.port);
      if (on) [edge.from, edge.to].forEach((end) => lit.add(end));
    });
    boxes.forEach((box, i) => {
      const on = chosen ? lit.has(i) || chosen.node === i : used.has(i);
      box.classList.toggle("mv-out", !on);
      box.classList.toggle("mv-chosen", Boolean(chosen) && chosen.node === i);
      box.querySelectorAll(".mv-port").forEach((p) => p.classList.toggle("mv-used", taken.has(i + p.dataset.port)));
    });
    count.textContent = counted();
    range.setAttribute("aria-valuetext", counted());
    tell();
  }

  const effectOf = (edge) => (known(edge) ? number(edge.effect) : "effect unknown");

  function some(list, name) {
    if (!list.length) return "nothing shown goes " + name;
    const rest = list.length > NAMED ? ` and ${list.length - NAMED} more` : "";
    const end = (i) => (name === "in" ? nodes[edges[i].from].name + (edges[i].port ? " by " + edges[i].port : "") : edges[i].takes);
    return name + ": " + list.slice(0, NAMED).map((i) => end(i) + (known(edges[i]) ? " " + number(edges[i].effect) : "")).join(", ") + rest;
  }

  function tell() {
    if (!chosen) return say(output, ["point at a node or an edge, or walk with the arrow keys"]);
    if (chosen.edge !== undefined) {
      const edge = edges[chosen.edge];
      const words = known(edge) ? spec.means : "";
      return say(output, [{ value: labels[chosen.edge] }, { value: effectOf(edge) }, words]);
    }
    const own = edges.map((_, i) => i).filter(isShown);
    const into = own.filter((i) => takers(chosen.node).includes(edges[i].to)), out = own.filter((i) => edges[i].from === chosen.node);
    const parts = [{ value: nodes[chosen.node].full }];
    if (nodes[chosen.node].kind !== "tokens") parts.push(some(into, "in"));
    if (nodes[chosen.node].kind !== "logits") parts.push(some(out, "out"));
    say(output, parts);
  }

  function choose(what) {
    chosen = what;
    light();
  }

  // -- pointer and keys ----------------------------------------------------------------
  function under(event) {
    const found = event.target.closest && event.target.closest("[data-node], [data-edge]");
    if (!found) return null;
    return found.dataset.node === undefined ? { edge: Number(found.dataset.edge) } : { node: Number(found.dataset.node) };
  }

  // The next node to one side in its row, or the nearest one in the row above or below.
  function beside(from, key) {
    const here = nodes[from], used = new Set(edges.slice(0, shown).flatMap((edge) => [edge.from, edge.to]));
    const others = nodes.map((_, i) => i).filter((i) => i !== from && used.has(i));
    const flat = key === "ArrowLeft" || key === "ArrowRight", sign = key === "ArrowLeft" || key === "ArrowDown" ? -1 : 1;
    const ahead = others.filter((i) => (flat ? nodes[i].y === here.y && sign * (nodes[i].x - here.x) > 0 : sign * (nodes[i].y - here.y) > 0));
    const far = (i) => 1000 * Math.abs(nodes[i].y - here.y) + Math.abs(nodes[i].x - here.x);
    return ahead.length ? ahead.reduce((a, b) => (far(b) < far(a) ? b : a)) : from;
  }

  function walk(key) {
    if (!key.startsWith("Arrow")) return undefined;
    const node = chosen && chosen.node !== undefined ? beside(chosen.node, key) : edges[0].from;
    boxes[node].scrollIntoView({ block: "nearest", inline: "nearest" });
    return { node };
  }

  arcs.choosing(plot, under, choose, walk);
  range.addEventListener("input", () => {
    shown = Number(range.value);
    light();
  });
  controls();
  return redraw;
};
