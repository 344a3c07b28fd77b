"use strict";
(() => {
  const copy = document.getElementById("copy");
  if (copy) copy.addEventListener("click", async () => {
    const code = document.getElementById("command");
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
    }
  });

  const stored = document.getElementById("data");
  if (!stored) return;
  const data = JSON.parse(stored.textContent);
  const { defenses, images, classes } = data;
  const SVG = "http://www.w3.org/2000/svg";
  const PAGE = 60;
  const FEW = 40;  // boxes of masks that are outlined boldly
  const at = (id) => document.getElementById(id);

  // ---- small helpers -------------------------------------------------------------------------

  function make(tag, attributes = {}, ...children) {
    const element = tag.startsWith("svg:")
      ? document.createElementNS(SVG, tag.slice(4))
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const nameOf = (label) =>
    label === -2 ? "an alert" : label === -1 ? "no label" : classes[label] || `class ${label}`;
  const numbers = (list) => list.map((i) => i + 1).join(", ");
  const pixelated = data.imageSize && Math.max(...data.imageSize) <= 64;

  // A label of each masked image: "." the true one, "?" not evaluated, "!" none, else one of `w`.
  function labelAt(image, column) {
    const sign = image.t[column];
    if (sign === ".") return image.label;
    if (sign === "?") return null;
    if (sign === "!") return -1;
    return image.w[sign.codePointAt(0) - 97];
  }
  const textAt = (image, column) => {
    const label = labelAt(image, column);
    return label === null ? "not evaluated" : nameOf(label);
  };

  // ---- the list --------------------------------------------------------------------------------

  const filters = { class: at("f-class"), a: at("f-a"), b: at("f-b"), kind: at("f-kind"), sort: at("f-sort") };
  if (at("f-size")) filters.size = at("f-size");
  const present = [...new Set(images.map((image) => image.label))].sort((x, y) => x - y);
  filters.class.append(make("option", { value: "" }, "all classes"));
  for (const label of present) filters.class.append(make("option", { value: label }, nameOf(label)));
  defenses.forEach((defense, i) => {
    for (const select of [filters.a, filters.b])
      select.append(make("option", { value: i }, `${defense.key}: ${defense.name}`));
  });
  if (defenses.length > 1) filters.b.value = "1";

  let chosen = [];
  let visible = PAGE;

  // The bin of the table that an image is in, from the size that it was given.
  const sizeBin = (image) => (image.bin === undefined ? "none" : String(image.bin));

  function matches(image) {
    if (filters.class.value !== "" && image.label !== Number(filters.class.value)) return false;
    if (filters.size && filters.size.value !== "" && sizeBin(image) !== filters.size.value) return false;
    const a = image.d[Number(filters.a.value)];
    const b = image.d[Number(filters.b.value)];
    switch (filters.kind.value) {
      case "yes": return a.c === 1;
      case "no": return a.c === 0;
      case "but": return a.c === 1 && b.c === 0;
      case "one": return a.c === 0 && a.only !== undefined;
      case "wrong": return a.a !== image.label && a.a !== -2;
      case "alert": return a.a === -2;
      case "broken": return (image.attack || []).some((one) => one.d === Number(filters.a.value) && one.broken);
      default: return true;
    }
  }

  const widest = (one) => Math.max(-1, ...(one.wide || []));

  function choose() {
    const number = Number(filters.a.value);
    chosen = images.filter(matches);
    const order = {
      margin: (x, y) => x.d[number].m - y.d[number].m,
      wide: (x, y) => widest(y.d[number]) - widest(x.d[number]),
      small: (x, y) => (x.o ?? 101) - (y.o ?? 101),
      large: (x, y) => (y.o ?? -1) - (x.o ?? -1),
    }[filters.sort.value];
    if (order) chosen.sort(order);
    visible = PAGE;
    filters.b.disabled = filters.kind.value !== "but";
    draw();
  }

  const outcome = (one, label) =>
    one.c ? "certified" : one.a === -2 ? "raises an alert" : one.a !== label ? `answers ${nameOf(one.a)}` : "not certified";

  function badge(image, i) {
    const one = image.d[i];
    const [kind, sign] = one.c ? ["yes", "✓"] : one.a === -2 ? ["wrong", "!"] : one.a !== image.label ? ["wrong", "✗"] : ["no", "–"];
    return make("span", { class: `badge ${kind}`, title: `${defenses[i].name} ${outcome(one, image.label)}` }, `${defenses[i].key} ${sign}`);
  }

  function card(image) {
    const words = defenses.map((defense, i) =>
      `${defense.key} ${outcome(image.d[i], image.label)}`);
    const picture = image.pic
      ? make("img", { src: image.pic, alt: "", ...(pixelated ? { class: "pixels" } : {}) })
      : make("span", { class: "blank" }, "no picture");
    const button = make("button", { class: "card", type: "button", "data-id": image.id, title: image.id }, picture,
      make("span", { class: "name" }, nameOf(image.label)),
      make("span", { class: "badges", "aria-hidden": "true" }, ...defenses.map((_, i) => badge(image, i))),
      make("span", { class: "unseen" }, `${image.id}: ${words.join(", ")}`));
    button.addEventListener("click", () => open(chosen.indexOf(image)));
    return make("li", {}, button);
  }

  function draw() {
    at("cards").replaceChildren(...chosen.slice(0, visible).map(card));
    at("count").textContent =
      `${chosen.length} of ${images.length} image${images.length === 1 ? "" : "s"}` + (chosen.length > visible ? `, ${visible} shown` : "");
    at("more").hidden = chosen.length <= visible;
  }

  at("more").addEventListener("click", () => {
    const first = visible;
    visible += 4 * PAGE;
    draw();
    at("cards").children[first]?.querySelector("button").focus();
  });
  for (const select of Object.values(filters)) select.addEventListener("change", choose);
  at("filters").addEventListener("submit", (event) => event.preventDefault());

  // ---- one image -------------------------------------------------------------------------------

  const dialog = at("detail");
  let place = 0;
  let picked = 0;

  function open(number) {
    place = number;
    picked = Number(filters.a.value);
    show();
    if (!dialog.open) dialog.showModal();
  }
  function move(step) {
    place = Math.min(chosen.length - 1, Math.max(0, place + step));
    show();
  }
  at("close").addEventListener("click", () => dialog.close());
  at("previous").addEventListener("click", () => move(-1));
  at("next").addEventListener("click", () => move(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const button = at("cards").children[place]?.querySelector("button");
    if (button) button.focus();
  });
  for (const id of ["show-places", "show-masks", "by-margin"]) at(id).addEventListener("change", drawMap);
  let shapeChosen = null;
  at("map-shape").addEventListener("change", () => { shapeChosen = Number(at("map-shape").value); drawMap(); });

  function show() {
    const image = chosen[place];
    at("previous").disabled = place === 0;
    at("next").disabled = place === chosen.length - 1;
    const named = nameOf(image.label);  // ids of folders begin with it
    at("detail-title").textContent = image.id.startsWith(named) ? image.id : `${named}: ${image.id}`;
    at("detail-facts").textContent =
      `Image ${place + 1} of ${chosen.length} chosen. True class ${nameOf(image.label)}; ` +
      `the model without a defense says ${nameOf(image.undefended)}.` +
      (image.o === undefined ? "" : ` Its objects cover ${image.o}% of what the model sees.`);
    const box = at("detail-defenses");
    box.replaceChildren(box.querySelector("legend"));
    defenses.forEach((defense, i) => {
      const radio = make("input", { type: "radio", name: "defense", value: i });
      radio.checked = i === picked;
      radio.addEventListener("change", () => { picked = i; showDefense(); });
      box.append(make("label", {}, radio, `${defense.key}: ${defense.name} `, badge(image, i)));
    });
    showDefense();
    showPatched(image);
  }

  function showDefense() {
    const image = chosen[place];
    const one = image.d[picked];
    const defense = defenses[picked];
    const proved = one.c ? "Certified" : "Not certified";
    const said = [`Answer without a patch: ${nameOf(one.a)}. ${one.answered || ""}`, `${proved}. ${one.proved || ""}`];
    if (one.only !== undefined) said.push(`All wrong labels that were seen have mask ${one.only + 1} in common.`);
    if (one.conditions) said.push(one.conditions);
    if (one.m !== null && one.m !== undefined)
      said.push(`${defense.marginOf || "Smallest logit margin over the masked images that were evaluated"}: ${one.m}.`);
    at("detail-why").replaceChildren(...said.map((line) => make("p", {}, line)));
    hiddenNow = [];
    const maps = defense.maps || [];
    const shape = at("map-shape");
    shape.replaceChildren(...maps.map((map, i) => make("option", { value: i }, `${map.shape.join("x")} patch`)));
    // The shape that was chosen, else the one of which most places are lost.
    const wide = one.wide || [0];
    const start = shapeChosen !== null && shapeChosen < maps.length ? shapeChosen : wide.indexOf(Math.max(...wide));
    if (maps.length) shape.value = String(start);
    shape.parentElement.hidden = maps.length < 2;
    drawMap();
    drawLabels();
  }

  // ---- the map: where a patch could change the answer -------------------------------------------

  const STATES = {
    h: ["cannot change the answer", "h"],
    f: ["could change the answer", "f"],
    o: ["not evaluated far enough to tell", "o"],
    g: [`not counted as certified: some logit margin of this image is at most the guard of ${data.guard}`, "g"],
  };
  const MARGINS = ["below 0.001", "0.001 to 0.01", "0.01 to 0.1", "0.1 to 0.3", "0.3 to 1", "1 to 3", "above 3"];
  const SHADES = ["#67000d", "#b11218", "#ef5a3c", "#f9a474", "#c6dbef", "#6baed6", "#2171b5"];

  // Units of the map across and down, which differ where cells are not square.
  function patterns(svg, across, down) {
    const defs = make("svg:defs");
    const scaled = { patternUnits: "userSpaceOnUse", width: 1, height: 1 };
    const hatch = make("svg:pattern", { id: "hatch", ...scaled, patternTransform: `scale(${across} ${down}) rotate(45)` },
      make("svg:rect", { width: 1, height: 1, fill: "#e2622b", "fill-opacity": 0.5 }),
      make("svg:rect", { width: 0.36, height: 1, fill: "#7d2405", "fill-opacity": 0.8 }));
    const dots = make("svg:pattern", { id: "dots", ...scaled, patternTransform: `scale(${across} ${down})` },
      make("svg:rect", { width: 1, height: 1, fill: "#6b7280", "fill-opacity": 0.45 }),
      make("svg:circle", { cx: 0.5, cy: 0.5, r: 0.16, fill: "#fff", "fill-opacity": 0.9 }));
    defs.append(hatch, dots);
    svg.append(defs);
  }

  function picture(image, height, width) {
    if (!image.pic) return make("svg:rect", { width, height, fill: "#eef1f5" });
    const shown = make("svg:image", { href: image.pic, width, height, preserveAspectRatio: "none" });
    if (pixelated) shown.setAttribute("class", "pixels");
    return shown;
  }
  const rect = ([top, left, bottom, right], className) =>
    make("svg:rect", { x: left, y: top, width: right - left, height: bottom - top, class: className });

  // Each distinct box once; of many only thin lines, so that the map under them stays readable.
  function outlines(masks) {
    const boxes = [...new Map(masks.flat().map((box) => [box.join(), box])).values()];
    return make("svg:g", { class: boxes.length > FEW ? "masks many" : "masks" }, ...boxes.map((box) => rect(box, "mask")));
  }

  let hiddenNow = [];  // boxes of the masks that are looked at

  function drawMap() {
    const image = chosen[place];
    const defense = defenses[picked];
    const number = Number(at("map-shape").value || 0);
    const map = (defense.maps || [])[number];
    const whole = image.d[picked];
    const one = {
      s: whole.s && whole.s[number], q: whole.q && whole.q[number], with: whole.with && whole.with[number],
      wide: whole.wide && whole.wide[number], openShare: whole.openShare && whole.openShare[number],
      guardShare: whole.guardShare && whole.guardShare[number],
    };
    const box = at("map-box");
    const readout = at("map-readout");
    readout.textContent = "";
    const [height, width] = defense.size || data.imageSize;
    const svg = make("svg:svg", { class: "map", viewBox: `0 0 ${width} ${height}`, id: "map" });
    if (data.cells) {
      svg.setAttribute("preserveAspectRatio", "none");
      svg.style.aspectRatio = `${data.imageSize[1]} / ${data.imageSize[0]}`;
    }
    patterns(svg, width / 42, height / (data.cells ? 42 : (42 * height) / width));
    svg.append(picture(image, height, width));
    const byMargin = at("by-margin").checked && Boolean(one.q);
    at("show-places").parentElement.hidden = !map;
    at("by-margin").parentElement.hidden = !map || !one.q;
    at("show-masks").parentElement.hidden = !defense.masks;
    if (map && at("show-places").checked && !hiddenNow.length) {
      const [ph, pw] = map.shape;
      const cells = make("svg:g");
      const starts = (firsts, end, side) => [...firsts, end].map((first) => first + side / 2 - 0.5);
      const ys = starts(map.rows, map.ends[0], ph);
      const xs = starts(map.cols, map.ends[1], pw);
      map.spot.forEach((row, i) => row.forEach((spot, j) => {
        if (spot < 0) return;
        const state = one.s ? one.s[spot] : "h";
        const cell = rect([ys[i], xs[j], ys[i + 1], xs[j + 1]], `cell ${state}`);
        cell.dataset.row = i;
        cell.dataset.col = j;
        cell.dataset.state = state;
        if (byMargin) {
          const level = one.q[spot];
          cell.setAttribute("style", level === "-" ? "fill:#6b7280;fill-opacity:.45" : `fill:${SHADES[level]};fill-opacity:.72`);
        }
        cells.append(cell);
      }));
      svg.append(cells);
    }
    if (defense.masks && at("show-masks").checked) svg.append(outlines(defense.masks));
    for (const part of hiddenNow) svg.append(rect(part, "hidden-part"));
    const cursor = make("svg:g");
    svg.append(cursor);
    box.replaceChildren(svg);
    legendOfMap(map, one, byMargin);
    at("map-title").textContent = !map ? "The image" : map.others ? "Where one of the patches could change the answer" : "Where a patch could change the answer";
    if (!map) {
      readout.textContent = defense.noMap || "";
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", "The image");
      return;
    }
    const lost = map.exact ? "A patch could change the answer" : "Nothing is proved";
    const wrong = whole.a !== image.label;
    const share = one.wide === undefined ? ""
      : one.guardShare && !one.wide ? ""
      : wrong ? ` The answer is ${whole.a === -2 ? "an alert" : "wrong"} without any patch, so no place counts as safe.`
      : ` ${lost} at ${one.wide}% of all places.`;
    const unknown = one.openShare ? ` ${one.openShare}% were not evaluated far enough to tell (certify --no-decide evaluates everything).` : "";
    const guarded = one.guardShare
      ? ` ${one.wide || one.openShare ? `At the other ${one.guardShare}% it could not` : "At no place could a patch change the answer"}, but ${defense.reach ? `that is not proved of all evidence within the margin guard of ${data.guard}` : `some logit margin of this image is at most the margin guard of ${data.guard}`}, so nothing is certified.` : "";
    const thing = `${map.shape.join("x")} ${data.cells ? "window of cells, as patches reach them" : "patch"}`;
    const others = map.others ? ` ${map.others === 1 ? "The other patch is" : "The other patches are"} wherever is worst.` : "";
    const start = one.s ? `Every point is the middle of a ${thing}.${others}${share}${unknown}${guarded}`
      : `Every point is the middle of a ${thing}, and none can change the answer.`;
    const left = (Math.max(...map.shape) > 1 ? " The border without marks is the middle of no patch." : "") +
      (defense.note ? ` ${defense.note}` : "");
    readout.textContent = `${start}${left} Point at the map or tap it, or use the arrow keys on it.`;
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("role", "application");
    svg.setAttribute("aria-roledescription", "map of places");
    svg.setAttribute("aria-label", `Where a patch could change the answer. ${start} Arrow keys move the patch.`);

    let here = null;
    function look(i, j) {
      i = Math.min(map.rows.length - 1, Math.max(0, i));
      j = Math.min(map.cols.length - 1, Math.max(0, j));
      here = [i, j];
      const spot = map.spot[i][j];
      const [top, left] = [map.rows[i], map.cols[j]];
      const patch = [top, left, top + map.shape[0], left + map.shape[1]];
      const group = one.with && spot >= 0 ? one.with[spot] : -1;
      const second = group >= 0 ? map.second[group].map(([height, width, row, col]) => [row, col, row + height, col + width]) : [];
      cursor.replaceChildren(...[patch, ...second].flatMap((each) => [rect(each, "patch"), rect(each, "patch inner")]));
      if (spot < 0) {
        readout.textContent = `Row ${top}, column ${left}: no patch may be here.`;
        return;
      }
      const state = one.s ? one.s[spot] : "h";
      const hiding = map.hiding[spot];
      const words = hiding.slice(0, 6).map((mask) =>
        `${mask + 1}` + (defense.single.length ? ` (${textAt(image, defense.single[mask])})` : ""));
      if (hiding.length > 6) words.push(`${hiding.length - 6} more`);
      const reached = map.reached && map.reached[spot];
      const who = map.reached
        ? defense.window ? `within a window of ${defense.window} of ${defense.parts} cells` : `meets ${reached} of ${defense.parts} ${defense.reach}`
        : hiding.length ? `hidden by mask${hiding.length > 1 ? "s" : ""} ${words.join(", ")}` : "hidden by no mask alone";
      const level = one.q ? one.q[spot] : "-";
      const margin = level === "-" ? "" : ` ${defense.levelsOf || "Smallest margin of what hides it"}: ${wordsOf(defense)[level]}.`;
      const alone = second.length > 0 && second.every((each) => each.every((edge, k) => edge === patch[k]));
      const beside = alone
        ? " even alone"
        : second.length
        ? ` with the other at ${second.map(([row, col]) => `row ${row}, column ${col}`).join(" and ")}`
        : map.others && state === "h" ? ", wherever the others are" : "";
      readout.textContent = `${data.cells ? "Window" : "Patch"} at row ${top}, column ${left}: ${stateOf(map, state)}${beside}; ${who}.${margin}`;
    }
    const last = (firsts, value) => {
      let found = 0;
      firsts.forEach((first, i) => { if (first <= value) found = i; });
      return found;
    };
    for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => {
      const frame = svg.getBoundingClientRect();
      const y = ((event.clientY - frame.top) / frame.height) * height - map.shape[0] / 2 + 0.5;
      const x = ((event.clientX - frame.left) / frame.width) * width - map.shape[1] / 2 + 0.5;
      look(last(map.rows, y), last(map.cols, x));
    });
    svg.addEventListener("pointerleave", () => cursor.replaceChildren());
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      if (here) look(here[0] + step[0], here[1] + step[1]);
      else look(0, 0);
    });
  }

  const wordsOf = (defense) => defense.levels || MARGINS;
  const stateOf = (map, state) =>
    state === "f" && !map.exact ? "nothing is proved: a patch may change the answer" : STATES[state][0];

  function legendOfMap(map, one, byMargin) {
    const list = at("map-legend");
    list.replaceChildren();
    if (!map) return;
    const entries = byMargin
      ? wordsOf(defenses[picked]).map((words, level) => [`background:${SHADES[level]}`, words])
      : [
          ["background:#b8d8d4", stateOf(map, "h")],
          ["background:repeating-linear-gradient(45deg,#7d2405 0 3px,#f0a587 3px 7px)", stateOf(map, "f")],
          ["background:radial-gradient(#fff 22%,#a9afb8 26%)", stateOf(map, "o")],
          ["background:#e9c46a", stateOf(map, "g")],
        ];
    if (byMargin) list.append(make("li", {}, `${defenses[picked].levelsOf || "Smallest logit margin of what hides the patch"}:`));
    const used = new Set(one.s || "h");
    entries.forEach(([style, words], i) => {
      if (byMargin || used.has("hfog"[i])) list.append(make("li", {}, make("i", { style }), words));
    });
  }

  // ---- labels under the masks: a table of pairs, or the masks alone ------------------------------

  const HUES = ["#b4441a", "#5b4bb0", "#a3346f", "#8a6a00", "#1d6fb8", "#4d6b1e", "#7a3b2e", "#3c3c3c"];
  function colourOf(image, label) {
    if (label === null) return "#dde1e7";
    if (label === image.label) return "#8fc7c0";
    if (label === -1) return "#111";
    return HUES[image.w.indexOf(label) % HUES.length];
  }

  function drawLabels() {
    const image = chosen[place];
    const defense = defenses[picked];
    const panel = at("labels-panel");
    hiddenNow = [];
    panel.hidden = !defense.single || !defense.single.length;
    if (panel.hidden) return;
    const pairs = defense.pair.length > 0;
    const across = pairs ? defense.pair[0].length : Math.ceil(Math.sqrt(defense.single.length));
    const down = pairs ? defense.pair.length : Math.ceil(defense.single.length / across);
    const columnOf = (i, j) => (pairs ? defense.pair[i][j] : defense.single[i * across + j]);
    at("labels-title").textContent = pairs
      ? `What the model says under two masks (${down} x ${across})`
      : `What the model says under each of ${defense.single.length} masks`;
    const svg = make("svg:svg", { class: "labels", viewBox: `-0.1 -0.1 ${across + 0.2} ${down + 0.2}`, id: "labels",
      tabindex: 0, role: "application", "aria-roledescription": "table of labels" });
    svg.setAttribute("aria-label", `${at("labels-title").textContent}. Arrow keys move; the masked image is shown.`);
    const cells = [];
    const seen = new Map();
    for (let i = 0; i < down; i++) for (let j = 0; j < across; j++) {
      const column = columnOf(i, j);
      if (column === undefined) continue;
      const label = labelAt(image, column);
      seen.set(label, (seen.get(label) || 0) + 1);
      const cell = make("svg:rect", { x: j, y: i, width: 1, height: 1, fill: colourOf(image, label), class: "label-cell" });
      cell.dataset.label = label === null ? "" : label;
      cells.push(cell);
    }
    svg.append(...cells);
    at("labels-box").replaceChildren(svg);
    const readout = at("labels-readout");
    const idle = pairs
      ? "Row and column are the two masks; on the diagonal there is one. Point at a cell or tap it, or use the arrow keys, to see that masked image."
      : "Point at a cell or tap it, or use the arrow keys, to see that masked image.";
    readout.textContent = idle;
    const list = [...seen].sort((x, y) => y[1] - x[1]);
    at("labels-legend").replaceChildren(...list.map(([label, count]) =>
      make("li", {}, make("i", { style: `background:${colourOf(image, label)}` }),
        `${label === null ? "not evaluated" : nameOf(label)}: ${count}`)));

    let here = [0, 0];
    function look(i, j) {
      i = Math.min(down - 1, Math.max(0, i));
      j = Math.min(across - 1, Math.max(0, j));
      const column = columnOf(i, j);
      if (column === undefined) return;
      here = [i, j];
      const second = defense.second || defense.masks;
      const one = pairs ? i : i * across + j;
      hiddenNow = pairs ? [...defense.masks[i], ...second[j]] : defense.masks[one];
      cells.forEach((cell) => cell.classList.remove("here"));
      const cell = cells.find((each) => Number(each.getAttribute("x")) === j && Number(each.getAttribute("y")) === i);
      cell.classList.add("here");
      svg.append(cell);
      drawMap();
      const who = pairs && (defense.second || i !== j) ? `Masks ${i + 1} and ${j + 1}` : `Mask ${one + 1}`;
      readout.textContent = `${who}: ${textAt(image, column)}.`;
    }
    function leave() {
      if (!hiddenNow.length) return;
      hiddenNow = [];
      cells.forEach((cell) => cell.classList.remove("here"));
      readout.textContent = idle;
      drawMap();
    }
    for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => {
      const frame = svg.getBoundingClientRect();
      const j = Math.floor(((event.clientX - frame.left) / frame.width) * (across + 0.2) - 0.1);
      const i = Math.floor(((event.clientY - frame.top) / frame.height) * (down + 0.2) - 0.1);
      if (i !== here[0] || j !== here[1] || !hiddenNow.length) look(i, j);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      look(here[0] + (hiddenNow.length ? step[0] : 0), here[1] + (hiddenNow.length ? step[1] : 0));
    });
  }

  // ---- under attack ------------------------------------------------------------------------------

  function showPatched(image) {
    const box = at("detail-patched");
    box.replaceChildren();
    if (!image.attack || !image.attack.length) return;
    box.append(make("h3", {}, "Under attack"));
    const list = make("ul", { class: "patched" });
    for (const one of image.attack) {
      const who = one.d === null ? "no defense" : `${defenses[one.d].key}: ${defenses[one.d].name}`;
      const what = one.broken
        ? `broken: answered ${nameOf(one.after)}`
        : one.after === image.label ? "not broken" : `not broken: answered ${nameOf(one.after)}`;
      const entry = make("li", {});
      if (one.pic) entry.append(make("img", { src: one.pic, alt: `patched image aimed at ${who}`, ...(pixelated ? { class: "pixels" } : {}) }));
      entry.append(make("span", {}, `${who}, ${what}`));
      list.append(entry);
    }
    box.append(list);
  }

  choose();
})();
