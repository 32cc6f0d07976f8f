// The memory page: selects all passages that are shown, or none if all are selected.
"use strict";

document.addEventListener("click", (event) => {
  if (!event.target.closest?.("[data-select-all]")) return;
  const boxes = [...document.querySelectorAll("input[type='checkbox'][form='bulk']")];
  const all = boxes.every((box) => box.checked);
  for (const box of boxes) box.checked = !all;
});
