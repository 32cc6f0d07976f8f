// What htmx does not do: the stream of updates, times in the local time zone, and the keyboard.
"use strict";

// The texts of all scripts, in the language of the page; `{name}` stands for a value.
const texts = JSON.parse(document.body.dataset.texts);
const language = document.documentElement.lang;
const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

(() => {
  const main = document.getElementById("main");
  const lost = document.getElementById("lost");
  const root = document.body.dataset.root;

  // --- local times ---------------------------------------------------------------------------------------------

  // Of the forms of English, the one that the pages write.
  const short = new Intl.DateTimeFormat(language === "en" ? "en-GB" : language, {
    day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit",
  });
  const long = new Intl.DateTimeFormat(language === "en" ? "en-GB" : language, { dateStyle: "full", timeStyle: "long" });

  function localize(within) {
    for (const time of within.querySelectorAll("time[datetime]:not([title])")) {
      const at = new Date(time.dateTime);
      time.title = long.format(at);
      time.textContent = short.format(at);
    }
  }

  // --- lost connections and errors-------------------------------------------------------------------------------

  function showLost(text) {
    if (lost.textContent !== text) lost.textContent = text;
    lost.hidden = !text;
  }

  // Check the session, and show what is wrong with it.
  async function session() {
    try {
      const answer = await fetch(`${root}/session`, { cache: "no-store" });
      if (answer.status === 401) showLost(texts.expired);
      else if (answer.ok) recovered();
      return answer.ok;
    } catch {
      showLost(texts.away);
      return false;
    }
  }

  // A request of this session has succeeded: hide the banner, and reconnect the stream at once.
  function recovered() {
    showLost("");
    connect();
  }

  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 401) showLost(texts.expired);
  });
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful) recovered();
  });
  // The user may have signed in since, in this tab or another one. Each page that opens notifies the others.
  const recheck = () => {
    if (!lost.hidden && !document.hidden) session();
  };
  for (const sign of ["storage", "focus"]) window.addEventListener(sign, recheck);
  document.addEventListener("visibilitychange", recheck);
  try {
    localStorage.setItem("isabella-opened", String(Date.now()));
  } catch {
    // Storage is disabled: the next request will notice.
  }
  // Isabella's errors carry HX-Retarget. One without comes from something in between, such as a reverse proxy; it must
  // not replace a form that the user is editing.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { isError, xhr } = event.detail;
    if (!isError || xhr.status === 401 || xhr.getResponseHeader("HX-Retarget")) return;
    event.detail.shouldSwap = false;
    const banner = document.createElement("div");
    banner.className = "banner bad";
    banner.textContent = filled(texts.proxy, { status: xhr.status });
    document.getElementById("notice").replaceChildren(banner);
  });
  for (const silence of ["htmx:sendError", "htmx:timeout"]) document.addEventListener(silence, () => session());
  // A trigger with `once` that failed is armed again: opening the details again sends the request again.
  document.addEventListener("htmx:afterRequest", (event) => {
    const { elt, successful } = event.detail;
    if (successful || !elt.matches?.("[hx-trigger$=' once']") || !elt.isConnected) return;
    // Close it first: closing is a toggle, too, and would send the request at once.
    elt.removeAttribute("open");
    const copy = elt.cloneNode(true);
    elt.replaceWith(copy);
    htmx.process(copy);
  });
  document.addEventListener("htmx:beforeRequest", () => document.getElementById("notice").replaceChildren());

  // --- inert while being replaced -----------------------------------------------------------------------------------

  // A fragment is inert while its replacement loads, because clicks and text in it would be lost.
  document.addEventListener("htmx:beforeSend", (event) => {
    const { elt, target, xhr } = event.detail;
    if (elt.closest("[hx-swap]")?.getAttribute("hx-swap") !== "outerHTML") return;
    const focused = document.activeElement;
    target.inert = true;
    // Runs after htmx has swapped the response in, and also if the target stays.
    xhr.addEventListener("loadend", () => {
      target.inert = false;
      if (target.contains(focused) && document.activeElement === document.body) focused.focus();
    });
  });

  // --- the stream --------------------------------------------------------------------------------------------------

  let source = null;
  let pause = 500;
  let timer = null;

  function connect() {
    const url = main.dataset.live;
    if (!url || source || document.hidden) return;
    clearTimeout(timer);
    source = new EventSource(url);
    source.addEventListener("put", (event) => put(event.data));
    source.onopen = () => {
      pause = 500;
      main.dataset.connected = "yes";
      showLost("");
    };
    source.onerror = () => {
      delete main.dataset.connected;
      const closed = source.readyState === EventSource.CLOSED;
      // Isabella may be away, or the session is over; only a request tells which.
      session();
      if (!closed) return;
      disconnect();
      // The browser reconnects after lost connections only.
      timer = setTimeout(connect, pause);
      pause = Math.min(pause * 2, 15000);
    };
  }

  function disconnect() {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
    delete main.dataset.connected;
  }

  // Browsers open at most six connections to a host, so hidden pages must not hold one.
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", connect);

  // Whether a fragment is on the page already: a live region that is replaced by itself would be announced again.
  function same(present, part) {
    const copies = [present, part].map((one) => one.cloneNode(true));
    for (const copy of copies) copy.removeAttribute("hx-swap-oob");
    return copies[0].isEqualNode(copies[1]);
  }

  // Place each fragment by its id; skip those whose element is not on the page. A page's own script is told before
  // and after it.
  function put(html) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    for (const part of [...holder.content.children]) {
      const where = part.getAttribute("hx-swap-oob") || "";
      const id = where.includes("#") ? where.split("#")[1] : part.id;
      const present = document.getElementById(id);
      const added = where.includes("#") && part.firstElementChild?.id;
      // The answer to a request of this page may have brought it before.
      const known = added && document.getElementById(added);
      if (!present || known || (where === "true" && same(present, part))) part.remove();
    }
    if (!holder.content.childElementCount) return;
    document.dispatchEvent(new Event("console:beforeput"));
    const open = [...document.querySelectorAll("details[open][id]")].map((one) => one.id);
    htmx.swap(document.body, holder.innerHTML, { swapStyle: "none" });
    for (const id of open) {
      const one = document.getElementById(id);
      if (one && !one.open) one.open = true;
    }
    settle(document);
    document.dispatchEvent(new Event("console:afterput"));
    if (main.dataset.untilUp && document.querySelector("[data-up]")) location.reload();
  }

  // --- after a swap ------------------------------------------------------------------------------------------------

  function settle(within) {
    localize(within);
    for (const note of document.querySelectorAll("[id^='else-'][data-version]")) {
      const form = note.closest("form");
      const differs = form && form.elements.version.value !== note.dataset.version;
      note.textContent = differs ? texts.changed : "";
      note.className = differs ? "banner warn" : "";
    }
  }

  document.addEventListener("htmx:afterSettle", (event) => {
    settle(document);
    const within = event.detail.elt;
    const wanted = within && (within.matches?.("[data-focus]") ? within : within.querySelector?.("[data-focus]"));
    if (wanted && document.contains(wanted)) wanted.focus();
  });

  document.addEventListener("input", (event) => {
    const area = event.target;
    if (!area.dataset || !area.dataset.count) return;
    const counter = document.getElementById(area.dataset.count);
    // Letta counts code points; JavaScript's length counts UTF-16 units.
    const used = [...area.value].length;
    const limit = Number(area.dataset.limit);
    counter.textContent = filled(texts.characters, {
      used: used.toLocaleString(language),
      limit: limit.toLocaleString(language),
    });
    counter.classList.toggle("bad", used > limit);
  });

  document.addEventListener("htmx:afterRequest", (event) => {
    const form = event.detail.elt;
    if (form.matches?.("[data-reset]") && event.detail.successful) {
      form.reset();
      document.getElementById("no-passages")?.remove();
    }
  });

  // Drafts are kept by the chat page.
  document.addEventListener("submit", (event) => {
    if (!event.target.action.endsWith("/sign-out")) return;
    try {
      for (const key of Object.keys(localStorage)) if (key.startsWith("isabella-draft ")) localStorage.removeItem(key);
    } catch {
      // Storage is disabled.
    }
  });

  // A click outside closes a menu.
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });

  // The offline page. Browsers allow a service worker only at https:// and on the same machine.
  navigator.serviceWorker?.register(document.body.dataset.worker, { scope: `${root}/` }).catch(() => {});

  localize(document);
  connect();
})();
