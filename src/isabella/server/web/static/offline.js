// The offline page: opens the page that was asked for as soon as Isabella answers.
"use strict";

async function look() {
  if (document.hidden) return;
  try {
    if ((await fetch("/health", { cache: "no-store" })).ok) location.reload();
  } catch {
    // Still away.
  }
}

setInterval(look, 3000);
document.addEventListener("visibilitychange", look);
