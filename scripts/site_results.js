(() => {
  "use strict";
  const all = JSON.parse(document.getElementById("results-data").textContent);
  const form = document.getElementById("results-filters");
  const table = document.getElementById("results-table");
  const FILTERS = [["machine", "machine"], ["direction", "direction"], ["dtype", "type"], ["by", "computed by"]];
  const COLUMNS = [
    ["call", "call"], ["direction", "direction"], ["dtype", "type"], ["by", "computed by"], ["ms", "milliseconds"],
    ["ratio", "of natten-mlx"], ["gflops", "GFLOP/s"], ["percent", "% of peak"], ["machine", "machine"], ["date", "date"],
  ];
  const number = (value) => value === null || value === undefined ? "" :
    value >= 100 ? value.toFixed(0) : value >= 1 ? value.toPrecision(3) : value.toPrecision(2);
  const isOurs = (row) => row.by.startsWith("natten-mlx") && !row.by.endsWith("pure");
  let sorted = ["", 1];

  // Beside the same call on the same machine and day.
  const key = (row) => [row.machine, row.date, row.call, row.direction, row.dtype].join("|");
  const ours = new Map(all.filter(isOurs).map((row) => [key(row), row.ms]));
  for (const row of all) row.ratio = ours.has(key(row)) ? row.ms / ours.get(key(row)) : null;

  function addFilters() {
    for (const [name, text] of FILTERS) {
      const values = [...new Set(all.map((row) => row[name]))].sort();
      const select = document.createElement("select");
      select.name = name;
      select.append(new Option("all", ""), ...values.map((value) => new Option(value)));
      addField(text, select);
    }
    const search = document.createElement("input");
    Object.assign(search, { name: "words", type: "search", placeholder: "for example na2d K 7x7" });
    addField("call has", search);
    form.addEventListener("input", draw);
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  function addField(text, field) {
    const label = document.createElement("label");
    label.append(text, field);
    form.append(label);
  }

  function chosen() {
    const wanted = Object.fromEntries(new FormData(form));
    const words = wanted.words.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = all.filter((row) => FILTERS.every(([name]) => !wanted[name] || row[name] === wanted[name]) &&
      words.every((word) => row.call.toLowerCase().includes(word)));
    const [by, sign] = sorted;
    if (!by) return rows;
    const value = (row) => row[by] ?? Infinity;
    return rows.sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
  }

  function draw() {
    const rows = chosen();
    const logs = rows.map((row) => Math.log10(row.ms));
    const low = Math.min(...logs) - 0.3, high = Math.max(...logs, low + 1);
    const machines = [...new Set(rows.map((row) => `${row.machine} (${row.date})`))];
    document.getElementById("results-about").textContent =
      `${rows.length} of ${all.length} times, on ${machines.join("; ") || "no machine"}. Bars are on a logarithmic scale.`;
    const columns = COLUMNS.filter(([name]) => (name !== "machine" && name !== "date") || machines.length > 1);
    const body = document.createElement("tbody");
    for (const row of rows) {
      const line = body.insertRow();
      if (isOurs(row)) line.className = "ours";
      for (const [name] of columns) {
        const cell = line.insertCell();
        if (name === "ms") {
          const bar = document.createElement("span");
          bar.className = "bar";
          bar.style.setProperty("--share", (Math.log10(row.ms) - low) / (high - low));
          cell.className = "time";
          cell.append(bar, number(row.ms));
        } else if (typeof row[name] === "number") {
          cell.className = `number ${name}`;
          cell.textContent = number(row[name]) + (name === "ratio" ? " x" : "");
        } else {
          cell.className = name;
          cell.textContent = row[name] ?? "";
        }
        if (name === "machine") cell.title = Object.entries(row.versions).map((pair) => pair.join(" ")).join(", ");
      }
    }
    table.replaceChildren(heads(columns), body);
  }

  function heads(columns) {
    const head = document.createElement("thead");
    const line = head.insertRow();
    for (const [name, text] of columns) {
      const cell = document.createElement("th");
      cell.className = name;
      const button = document.createElement("button");
      button.textContent = text + (sorted[0] === name ? (sorted[1] > 0 ? " \u25b2" : " \u25bc") : "");
      button.addEventListener("click", () => { sorted = [name, sorted[0] === name ? -sorted[1] : 1]; draw(); });
      cell.setAttribute("aria-sort", sorted[0] === name ? (sorted[1] > 0 ? "ascending" : "descending") : "none");
      cell.append(button);
      line.append(cell);
    }
    return head;
  }

  addFilters();
  const first = all.find((row) => row.by !== "natten-mlx" && !row.by.startsWith("natten-mlx,"));
  if (first) form.elements.machine.value = first.machine;
  draw();
})();
