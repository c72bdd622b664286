"use strict";
// Nothing here is needed to read the page: it hides, filters, sorts, and shows what stands in the data below the table.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = Object.fromEntries(data.names.map((name, index) => [name, index]));
  const texts = new Set(["code", "command", "reason"]);
  const rows = data.rows.map(([setting, values, strips]) => ({
    strips, setting, get: (name) => (texts.has(name) ? data.texts[values[place[name]]] : values[place[name]]),
  }));
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // one setting at a time
  const settings = document.getElementById("settings");
  const showSetting = (slug) => {
    all("section.setting").forEach((section) => { section.hidden = section.dataset.setting !== slug; });
    all("#settings input").forEach((input) => { input.checked = input.value === slug; });
  };
  if (settings) {
    settings.hidden = false;
    settings.addEventListener("change", (event) => showSetting(event.target.value));
    showSetting(settings.querySelector("input").value);
  }

  // one subject and regime of a heat map at a time
  all(".heats").forEach((part) => {
    const form = part.querySelector("form");
    if (!form) return;
    const show = () => all(".heat", part).forEach((heat) => {
      const [subject, regime] = all("select", form).map((select) => select.value);
      heat.hidden = heat.dataset.subject !== subject || (regime !== "" && heat.dataset.regime !== regime);
    });
    form.hidden = false;
    form.addEventListener("change", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    show();
  });

  // the cells of a rule, folded
  all(".dots .more").forEach((button) => {
    const parts = [];
    for (let row = button.closest("tr").nextElementSibling; row && row.classList.contains("part"); row = row.nextElementSibling) parts.push(row);
    const fold = (open) => {
      button.setAttribute("aria-expanded", open);
      parts.forEach((row) => { row.hidden = !open; });
    };
    button.addEventListener("click", () => fold(button.getAttribute("aria-expanded") !== "true"));
    fold(false);
  });

  // the table of all cells
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  all("tr", body).forEach((line, index) => { rows[index].line = line; });
  const verdict = (row) => {
    if (row.get("status") === "ok") return row.get("verdict");
    return row.get("refused") === row.get("subject") ? row.get("status") : `${row.get("refused")} ${row.get("status")}`;
  };
  const value = (row, name) => {
    if (name === "setting") return row.setting;
    if (name === "verdict") return verdict(row);
    return row.get(name);
  };
  rows.forEach((row) => {
    row.words = [row.setting, "rule", "workload", "layer", "kind", "signs", "regime", "subject", "baseline", "verdict"]
      .map((name, index) => (index ? value(row, name) : name)).concat(`batch ${row.get("batch")}`).join(" ").toLowerCase();
  });

  const filters = document.getElementById("filters");
  const search = document.getElementById("filter");
  const selects = all("select", filters);
  const count = document.getElementById("count");
  const extra = {};  // what a link from the heat map asks beyond the menus
  const close = (row) => {
    if (row.detail) row.detail.remove();
    row.detail = null;
    row.button.setAttribute("aria-expanded", "false");
  };
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter((select) => select.value !== "").map((select) => [select.dataset.column, select.value]).concat(Object.entries(extra));
    let shown = 0;
    rows.forEach((row) => {
      const fits = words.every((word) => row.words.includes(word)) && wanted.every(([name, text]) => String(value(row, name)) === text);
      row.line.hidden = !fits;
      if (!fits && row.detail) close(row);
      shown += fits;
    });
    document.getElementById("cells").classList.toggle("filtered", shown !== rows.length);
    count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  };
  selects.forEach((select) => {
    const values = [...new Set(rows.map((row) => String(value(row, select.dataset.column))))].sort();
    select.append(...values.map((text) => make("option", { value: text, textContent: text })));
  });
  filters.hidden = false;
  filters.addEventListener("input", () => { for (const name in extra) delete extra[name]; filter(); });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => { for (const name in extra) delete extra[name]; setTimeout(filter); });

  all("thead th", table).forEach((head) => {
    const name = head.dataset.column;
    const button = make("button", { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      all("thead th", table).forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const missing = (found) => found === null || found === "";
      const order = [...rows].sort((one, two) => {
        const [a, b] = [value(one, name), value(two, name)];
        if (missing(a) || missing(b)) return missing(a) - missing(b);  // what is missing comes last either way
        const difference = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return up ? difference : -difference;
      });
      body.append(...order.flatMap((row) => (row.detail ? [row.line, row.detail] : [row.line])));
    });
  });

  // what stands behind a row
  const digits = (number) => (number === 0 ? "0" : Math.abs(number) >= 1e5 || Math.abs(number) < 1e-3 ? number.toExponential(2) : String(Number(number.toPrecision(3))));
  const time = (number) => {
    const [factor, unit] = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]].find(([size]) => number >= size) || [1e-9, "ns"];
    return `${Number((number / factor).toPrecision(3))} ${unit}`;
  };
  const written = (name, found) => {
    if (found === null || found === "") return "—";
    if (typeof found !== "number") return String(found);
    if (name.endsWith("seconds")) return time(found);
    if (name.endsWith("bytes")) return `${digits(found / 2 ** 20)} MiB`;
    return Number.isInteger(found) ? String(found) : digits(found);
  };
  const draw = (name, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, found]) => element.setAttribute(key, found));
    element.textContent = text;
    return element;
  };
  const strip = (row) => {
    const sides = [[row.get("subject"), row.strips.A || []], [row.get("baseline"), row.strips.B || []]];
    const values = sides.flatMap(([, found]) => found).map(Math.log);
    if (!values.length) return "—";
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const svg = draw("svg", { class: "strip", role: "img" });
    sides.forEach(([name, found], side) => {
      const group = draw("g", { class: side ? "series3" : "series0" });
      group.append(draw("text", { x: "0", y: 10 + 32 * side }, name));
      found.forEach((seconds) => group.append(draw("circle", { cx: `${2 + 96 * ((Math.log(seconds) - low) / (high - low || 1))}%`, cy: 20 + 32 * side, r: 4 })));
      svg.append(group);
    });
    svg.append(draw("text", { x: "0", y: 74 }, time(Math.exp(low))), draw("text", { x: "100%", y: 74, "text-anchor": "end" }, time(Math.exp(high))));
    svg.setAttribute("aria-label", sides.map(([name, found]) => `${name}: ${found.length ? `${time(found[0])} to ${time(found[found.length - 1])}` : "none"}`).join("; "));
    return svg;
  };
  const detail = (row) => {
    const line = (name, content) => make("div", {}, make("dt", { textContent: name, title: data.docs[name] || "" }), make("dd", {}, content));
    const first = make("dl", { className: "texts" });
    if (row.get("reason")) first.append(line("reason", row.get("reason")));
    first.append(line("calls", strip(row)));
    ["code", "command"].filter((name) => row.get(name)).forEach((name) => first.append(line(name, make("pre", {}, make("code", { textContent: row.get(name) })))));
    const told = data.names.filter((name) => !texts.has(name) && row.get(name) !== null && row.get(name) !== "");
    const facts = make("dl", { className: "facts" }, ...told.map((name) => line(name, written(name, row.get(name)))));
    return make("tr", { className: "detail" }, make("td", { colSpan: [...row.line.cells].filter((cell) => cell.offsetWidth).length }, first, facts));
  };
  rows.forEach((row) => {
    const first = row.line.querySelector("td:not(.wide)");
    row.button = make("button", { type: "button", className: "more", textContent: first.textContent });
    row.button.setAttribute("aria-expanded", "false");
    first.replaceChildren(row.button);
    row.button.addEventListener("click", () => {
      if (row.detail) { close(row); return; }
      row.detail = detail(row);
      row.line.after(row.detail);
      row.button.setAttribute("aria-expanded", "true");
    });
  });

  // from a cell of the heat map to its rows
  all("[data-show]").forEach((link) => link.addEventListener("click", () => {
    const wanted = JSON.parse(link.dataset.show);
    filters.reset();
    setTimeout(() => {
      Object.entries(wanted).forEach(([name, text]) => {
        const select = selects.find((one) => one.dataset.column === name);
        if (select) select.value = text;
        else if (text && name !== "setting") extra[name] = text;
      });
      extra.kind = "layer";
      filter();
    });
  }));
})();
