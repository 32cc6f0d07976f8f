// The service worker of the console: shows the offline page if a page cannot be loaded. It keeps that page and its few
// files, whose URLs the page passes on, and nothing else: no page, no answer of the API, no memory.
"use strict";

const KEPT = new URLSearchParams(location.search).getAll("keep");
const [OFFLINE] = KEPT;
const CACHE = `isabella-offline ${location.search}`;

addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(KEPT)).then(() => skipWaiting()));
});

addEventListener("activate", (event) => {
  const others = (names) => names.filter((name) => name.startsWith("isabella-offline ") && name !== CACHE);
  event.waitUntil(caches.keys().then((names) => Promise.all(others(names).map((name) => caches.delete(name)))));
});

addEventListener("fetch", (event) => {
  const { request } = event;
  const { pathname, search } = new URL(request.url);
  if (request.method !== "GET") return;
  if (request.mode === "navigate" && request.destination === "document") {
    event.respondWith(fetch(request).catch(() => caches.match(OFFLINE)));
  } else if (KEPT.includes(pathname + search)) {
    event.respondWith(fetch(request).catch(() => caches.match(request)));
  }
});
