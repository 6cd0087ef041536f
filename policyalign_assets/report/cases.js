"use strict";
const search = document.getElementById("search");
const state = document.getElementById("state");
const shown = document.getElementById("shown");
const cases = Array.from(document.querySelectorAll("article"));
const texts = cases.map((c) => c.textContent.toLowerCase());
function filter() {
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  cases.forEach((c, i) => {
    const match = wanted.every((w) => texts[i].includes(w)) &&
      (!state.value || c.dataset.state === state.value);
    c.hidden = !match;
    count += match;
  });
  shown.textContent = String(count);
}
search.addEventListener("input", filter);
state.addEventListener("change", filter);
document.getElementById("tools").hidden = false;
