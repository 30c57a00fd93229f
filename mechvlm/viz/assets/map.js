// A plane of cells: rows by columns, with token labels and bands of groups.
MechVLM.kinds.map = (plot, spec, output, figure) => {
  const { el, svg, number, say } = MechVLM;
  const values = MechVLM.decode(spec.values), colour = MechVLM.palette(spec.scale);
  const nRows = spec.rows.labels.length, nCols = spec.cols.labels.length;
  const written = spec.cols.tokens.length > 0, up = spec.rows.name === "layer";
  const words = (written ? spec.cols.tokens : spec.cols.labels).map((w, i) =>
    spec.quiet[i] ? "" : MechVLM.shortened(w, 22));
  figure.querySelector("figcaption").after(MechVLM.bar(spec.scale, spec.units));

  const raster = el("canvas");
  raster.width = nCols;
  raster.height = nRows;
  MechVLM.themed(() => {
    const pixels = new ImageData(nCols, nRows);
    values.forEach((v, i) => {
      const row = Math.floor(i / nCols), at = (up ? nRows - 1 - row : row) * nCols + (i % nCols);
      pixels.data.set([...colour(v), 255], 4 * at);
    });
    raster.getContext("2d").putImageData(pixels, 0, 0);
  });

  let edges = [], left = 0, top = 0, row = 1, chosen = -1;
  const marker = el("div", "mv-cell");

  function strongest() {
    let best = 0;
    values.forEach((v, i) => {
      if (Number.isFinite(v) && !(Math.abs(v) <= Math.abs(values[best]))) best = i;
    });
    return best;
  }

  function columnEdges(room) {
    const silent = spec.quiet.filter(Boolean).length, rest = nCols - silent;
    const most = written ? 30 : 46;
    const wide = rest ? Math.min(most, (room * (silent ? 0.66 : 1)) / rest) : 0;
    const thin = silent ? Math.min(most, (room - wide * rest) / silent) : 0;
    const out = [0];
    spec.quiet.forEach((q) => out.push(out[out.length - 1] + (q ? thin : wide)));
    return out;
  }

  function inGrid(position) {
    for (const [start, rows, cols] of spec.grids) {
      const k = position - start;
      if (k >= 0 && k < rows * cols) return "image row " + Math.floor(k / cols) + ", col " + (k % cols);
    }
    return "";
  }

  function read(i, lead) {
    const r = Math.floor(i / nCols), c = i % nCols, cols = spec.cols;
    const parts = [{ value: number(values[i]) }, spec.rows.name + " " + spec.rows.labels[r].replaceAll("->", "→"),
      cols.name + " " + cols.labels[c]];
    if (written && !spec.quiet[c]) parts.push({ token: cols.tokens[c] });
    parts.push((cols.name === "position" && inGrid(Number(cols.labels[c]))) || MechVLM.groupAt(cols, c));
    say(output, lead ? [lead, ...parts] : parts);
  }

  function choose(i) {
    chosen = i;
    marker.hidden = i < 0;
    if (i < 0) return read(strongest(), "strongest");
    const r = Math.floor(i / nCols), c = i % nCols;
    Object.assign(marker.style, {
      left: left + edges[c] + "px", width: Math.max(2, edges[c + 1] - edges[c]) + "px",
      top: top + (up ? nRows - 1 - r : r) * row + "px", height: row + "px",
    });
    read(i);
  }

  function at(event) {
    const box = plot.getBoundingClientRect();
    const x = event.clientX - box.left - left, y = event.clientY - box.top - top;
    if (x < 0 || y < 0 || x >= edges[nCols] || y >= row * nRows) return -1;
    const r = Math.floor(y / row);
    return (up ? nRows - 1 - r : r) * nCols + (edges.findIndex((e) => e > x) - 1);
  }

  function widest(layer, texts, size) {
    const probe = svg("text", { "font-size": size });
    layer.append(probe);
    let most = 0;
    for (const text of texts) {
      probe.textContent = text;
      most = Math.max(most, probe.getComputedTextLength());
    }
    probe.remove();
    return most;
  }

  function redraw(width) {
    plot.replaceChildren();
    const layer = svg("svg", { class: "mv-text", width, height: 10, "aria-hidden": "true" });
    plot.append(layer);
    const names = spec.rows.labels.map((l) => MechVLM.shortened(l.replaceAll("->", "→"), 32));
    left = Math.ceil(widest(layer, names, 12)) + 34;
    top = spec.cols.groups.length ? 26 : 6;
    row = Math.max(9, Math.min(26, Math.floor(340 / nRows)));
    edges = columnEdges(width - left - 8);
    const high = row * nRows, wide = edges[nCols];
    const below = (written ? widest(layer, words, 12) : 14) + 34;
    layer.setAttribute("height", top + high + below);
    plot.style.height = top + high + below + "px";
    paint(wide, high);
    rowLabels(layer, names, high);
    columnLabels(layer, high, wide, below);
    bands(layer);
    plot.append(marker);
    choose(chosen);
  }

  function paint(wide, high) {
    const canvas = el("canvas", "mv-cells"), sharp = window.devicePixelRatio || 1;
    canvas.width = Math.ceil(wide * sharp);
    canvas.height = Math.ceil(high * sharp);
    Object.assign(canvas.style, { left: left + "px", top: top + "px", width: wide + "px", height: high + "px" });
    const pen = canvas.getContext("2d");
    let from = 0; // one drawImage for each run of columns of one width
    for (let c = 1; c <= nCols; c++) {
      if (c < nCols && spec.quiet[c] === spec.quiet[from]) continue;
      const step = (edges[c] - edges[from]) / (c - from);
      pen.imageSmoothingEnabled = step * sharp < 1;
      pen.drawImage(raster, from, 0, c - from, nRows,
        edges[from] * sharp, 0, (edges[c] - edges[from]) * sharp, high * sharp);
      from = c;
    }
    plot.append(canvas);
  }

  function rowLabels(layer, names, high) {
    const step = Math.ceil(14 / row);
    names.forEach((name, r) => {
      if (r % step) return;
      const y = top + ((up ? nRows - 1 - r : r) + 0.5) * row;
      layer.append(svg("text", { x: left - 8, y: y + 4, "text-anchor": "end", class: up ? "mv-faint" : "" }, name));
    });
    const middle = top + high / 2;
    layer.append(svg("text", { x: 0, y: 0, "text-anchor": "middle", class: "mv-faint",
      transform: `translate(11 ${middle}) rotate(-90)` }, spec.rows.name));
  }

  function columnLabels(layer, high, wide, below) {
    const room = written ? 13.5 : widest(layer, words, 12) + 8;
    let free = -1e9;
    words.forEach((word, c) => {
      const x = left + (edges[c] + edges[c + 1]) / 2;
      if (!word || x < free) return;
      free = x + room - 0.5;
      const y = top + high + (written ? 8 : 18);
      layer.append(written
        ? svg("text", { "text-anchor": "end", transform: `translate(${x + 4} ${y}) rotate(-90)` }, word)
        : svg("text", { x, y, "text-anchor": "middle", class: "mv-faint" }, word));
    });
    layer.append(svg("text", { x: left + wide / 2, y: top + high + below - 6, "text-anchor": "middle",
      class: "mv-faint" }, spec.cols.name));
  }

  function bands(layer) {
    for (const [group, from, to] of spec.cols.groups) {
      const x0 = left + edges[from] + 1, x1 = left + edges[to] - 1, strong = group === "image";
      const cls = strong ? "mv-strong" : "mv-faint";
      layer.append(svg("line", { x1: x0, x2: x1, y1: top - 6, y2: top - 6, class: cls }));
      const name = svg("text", { x: (x0 + x1) / 2, y: top - 12, "text-anchor": "middle", class: cls },
        to - from > 12 ? group + " ×" + (to - from) : group);
      layer.append(name);
      if (name.getComputedTextLength() > x1 - x0 + 4) name.remove();
    }
  }

  plot.addEventListener("pointermove", (event) => choose(at(event)));
  plot.addEventListener("pointerdown", (event) => choose(at(event)));
  plot.addEventListener("pointerleave", () => choose(-1));
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [up ? 1 : -1, 0], ArrowDown: [up ? -1 : 1, 0] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const from = chosen < 0 ? strongest() : chosen;
    const r = Math.min(nRows - 1, Math.max(0, Math.floor(from / nCols) + move[0]));
    const c = Math.min(nCols - 1, Math.max(0, (from % nCols) + move[1]));
    choose(r * nCols + c);
  });
  return redraw;
};
