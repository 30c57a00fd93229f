// A flow graph: groups of tokens side by side, bands of layers upwards, ribbons between.
MechVLM.kinds.flow = (plot, spec, output, figure) => {
  const { el, svg, say, number, arcs } = MechVLM;
  const { groups, bands, ribbons } = spec, colour = MechVLM.palette(spec.scale);
  const TOP = 10, NAMES = 46;
  const order = ribbons.map((_, i) => i).sort((a, b) => rank(a) - rank(b));
  let chosen = null, ways = [], marks = null;

  function rank(i) {
    return (ribbons[i].standing === "other" ? 0 : 1e6) + Math.abs(ribbons[i].effect);
  }

  const paint = (effect) => arcs.css(colour(arcs.shade(effect, spec.full)));

  // Sizes of the legend follow the columns, as the ribbons do.
  function legend(column) {
    const sizes = spec.marks.map((value) => ({
      value: number(value),
      width: (Math.abs(value) / spec.full) * spec.widest * column,
      colour: () => paint(value),
    }));
    const thin = ribbons.some((one) => one.width * column < spec.hair);
    const least = number((spec.full * spec.hair) / (spec.widest * column));
    const made = arcs.legend(sizes, spec.units + (thin ? `; below ${least} all are equally thin` : ""));
    if (marks) marks.replaceWith(made);
    else plot.before(made);
    marks = made;
  }

  function ground(layer, left, column, step, wide) {
    const top = TOP + step * bands.length;
    bands.forEach((band, k) => {
      const y = top - (k + 1) * step;
      if (k % 2 === 0) layer.append(svg("rect", { x: 0, y, width: wide, height: step, fill: "var(--card)" }));
      layer.append(svg("text", { x: 6, y: y + step / 2 + 4, class: "mv-faint" }, ""));
      wrapped(layer.lastChild, band, left - 14);
    });
    if (groups.some((group) => group.size)) layer.append(svg("text", { x: 6, y: top + 38, class: "mv-faint" }, "tokens"));
    groups.forEach((group, i) => {
      const x = left + (i + 0.5) * column, made = svg("g", { "data-group": i, style: "cursor:pointer" });
      made.append(
        svg("title", {}, group.name),
        svg("rect", { x: x - column / 2, y: TOP, width: column, height: top - TOP + NAMES, fill: "transparent" }),
        svg("line", { x1: x, x2: x, y1: TOP, y2: top, class: "mv-rail" }),
        svg("text", { x, y: top + 22, "text-anchor": "middle", class: "mv-strong" }, group.name),
        svg("text", { x, y: top + 38, "text-anchor": "middle", class: "mv-faint" }, group.size));
      layer.append(made);
    });
  }

  // Words on as many lines as they need.
  function wrapped(text, words, room) {
    const lines = [""], most = Math.max(6, Math.floor(room / 6.4));
    for (const word of words.split(" ")) {
      const last = lines[lines.length - 1];
      if (last && (last + " " + word).length > most) lines.push(word);
      else lines[lines.length - 1] = last ? last + " " + word : word;
    }
    const x = text.getAttribute("x"), y = Number(text.getAttribute("y"));
    lines.forEach((line, i) => text.append(svg("tspan", { x, y: y + 14 * (i - (lines.length - 1) / 2) }, MechVLM.shortened(line, most + 2))));
  }

  function way(i, left, column, step) {
    const one = ribbons[i], top = TOP + step * bands.length;
    const at = [left + one.start * column, top - one.band * step, left + one.stop * column, top - (one.band + 1) * step];
    const d = arcs.rising(at), width = Math.max(spec.hair, one.width * column), made = svg("g", { "data-ribbon": i });
    const line = svg("path", { d, fill: "none", stroke: paint(one.effect), "stroke-width": width, class: "mv-way" });
    if (one.standing === "uncontrolled") line.setAttribute("stroke-dasharray", "3 3");
    if (one.standing === "other") line.setAttribute("stroke-opacity", 0.25);
    made.append(line, svg("path", { d, fill: "none", stroke: "transparent", "stroke-width": Math.max(12, width), "pointer-events": "stroke" }));
    return made;
  }

  function dots(layer, left, column, step) {
    const edges = ribbons.filter((one) => one.standing !== "other"), top = TOP + step * bands.length;
    const ends = new Set(edges.flatMap((one) => [one.source + "." + one.band, one.target + "." + (one.band + 1)]));
    for (let i = 0; i < groups.length; i++)
      for (let k = 0; k <= bands.length; k++) {
        const on = ends.has(i + "." + k), ink = on ? "var(--ink)" : "var(--faint)";
        layer.append(svg("circle", { cx: left + (i + 0.5) * column, cy: top - k * step, r: on ? 3.6 : 2.4, fill: on ? ink : "var(--paper)", stroke: ink, "pointer-events": "none" }));
      }
  }

  function redraw(room) {
    const left = room < 560 ? 58 : 120, column = Math.min(170, Math.max(58, (room - left - 4) / groups.length));
    const step = Math.min(120, Math.max(60, 440 / bands.length)), wide = Math.max(room, left + column * groups.length);
    const scroller = el("div", "mv-scroll"), height = TOP + step * bands.length + NAMES;
    const layer = svg("svg", { class: "mv-text mv-graph", width: wide, height, "aria-hidden": "true" });
    ground(layer, left, column, step, wide);
    ways = [];
    order.forEach((i) => layer.append((ways[i] = way(i, left, column, step))));
    dots(layer, left, column, step);
    order.filter((i) => ribbons[i].labelled).forEach((i) => label(i, left, column, step));
    scroller.append(layer);
    plot.replaceChildren(scroller);
    layer.querySelectorAll(".mv-strong").forEach((name) => arcs.fit(name, column - 4));
    legend(column);
    light();
  }

  function label(i, left, column, step) {
    const one = ribbons[i], y = TOP + step * (bands.length - one.band - 0.5) + 4;
    const style = one.width * column < 13 ? "" : "fill:var(--paper);stroke:" + paint(one.effect);
    ways[i].append(svg("text", { x: left + ((one.start + one.stop) / 2) * column, y, style, "text-anchor": "middle", class: "mv-halo", "pointer-events": "none" }, number(one.effect) + " %"));
  }

  // -- what is lit ---------------------------------------------------------------------
  function light() {
    const lit = (one, i) => !chosen || i === chosen.ribbon || one.source === chosen.group || one.target === chosen.group;
    ribbons.forEach((one, i) => ways[i].classList.toggle("mv-out", !lit(one, i)));
    tell();
  }

  const range = (one, name) => (one[name + "_low"] === null ? "" : " (" + number(one[name + "_low"]) + " to " + number(one[name + "_high"]) + ")");
  const prompts = (n) => n + (n === 1 ? " prompt" : " prompts");

  function told(one) {
    const parts = [{ value: one.name }, { value: number(one.effect) + " %" + range(one, "effect") }, prompts(one.n)];
    if (one.n_control) {
      parts.push("random cuts of its size " + number(one.control) + " %" + range(one, "control"));
      parts.push("beyond 95 % of them by " + number(one.beyond) + range(one, "beyond"));
    }
    const why = { kept: "an edge: costs more than random cuts", uncontrolled: "no random cuts of its size exist: it may be chance", other: "not told from random cuts" };
    return [...parts, why[one.standing]];
  }

  function tell() {
    if (!chosen) return say(output, ["point at a ribbon or a group, or walk with the arrow keys"]);
    if (chosen.ribbon !== undefined) return say(output, told(ribbons[chosen.ribbon]));
    const own = ribbons.filter((one) => one.source === chosen.group || one.target === chosen.group);
    const listed = own.filter((one) => one.standing === "kept").map((one) => one.name + " " + number(one.effect) + " %");
    const group = groups[chosen.group];
    say(output, [{ value: group.name }, group.size && group.size + (group.size === "1" ? " token" : " tokens"), ...(listed.length ? listed : ["no edge begins or ends here"])]);
  }

  function choose(what) {
    chosen = what;
    light();
  }

  function under(event) {
    const found = event.target.closest && event.target.closest("[data-ribbon], [data-group]");
    if (!found) return null;
    return found.dataset.ribbon === undefined ? { group: Number(found.dataset.group) } : { ribbon: Number(found.dataset.ribbon) };
  }

  function walk(key) {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
    if (!move || !order.length) return undefined;
    const ranked = order.slice().reverse();
    const next = chosen && chosen.ribbon !== undefined ? ranked.indexOf(chosen.ribbon) + move : 0;
    return { ribbon: ranked[Math.min(ranked.length - 1, Math.max(0, next))] };
  }

  arcs.choosing(plot, under, choose, walk);
  plot.after(...spec.notes.map((note) => el("div", "mv-faint", note)));
  return redraw;
};
