// What the pages need beside htmx: the stream of what happens, the reader's own clock, and the keyboard.
"use strict";

(() => {
  const main = document.getElementById("main");
  const lost = document.getElementById("lost");
  const root = document.body.dataset.root;
  const scroll = document.getElementById("scroll");

  // --- times in the reader's own zone --------------------------------------------------------------------------

  const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const two = (number) => String(number).padStart(2, "0");

  function localize(within) {
    for (const time of within.querySelectorAll("time[datetime]:not([title])")) {
      const at = new Date(time.dateTime);
      time.title = at.toString();
      time.textContent = `${two(at.getDate())} ${months[at.getMonth()]}, ${two(at.getHours())}:${two(at.getMinutes())}`;
    }
  }

  // --- when something is gone ------------------------------------------------------------------------------------

  function say(text) {
    if (lost.textContent !== text) lost.textContent = text;
    lost.hidden = !text;
  }

  const AWAY = "Isabella does not answer. What you have written stays here; the page goes on as soon as she is back.";
  const EXPIRED = "Your session has expired. Open the link that `isabella login` prints, in this browser, " +
    "and go on here: what you have written stays.";

  // Whether the session is still good; says what is wrong where it is not.
  async function session() {
    try {
      const answer = await fetch(`${root}/session`, { cache: "no-store" });
      if (answer.status === 401) say(EXPIRED);
      else if (answer.ok) good();
      return answer.ok;
    } catch {
      say(AWAY);
      return false;
    }
  }

  // Isabella has answered this session: nothing is lost any more, and the stream goes on at once.
  function good() {
    say("");
    connect();
  }

  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 401) say(EXPIRED);
  });
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful) good();
  });
  // Somebody may have signed in meanwhile, in this tab or another one. Every page that is opened tells the others.
  const again = () => {
    if (!lost.hidden && !document.hidden) session();
  };
  for (const sign of ["storage", "focus"]) window.addEventListener(sign, again);
  document.addEventListener("visibilitychange", again);
  try {
    localStorage.setItem("isabella-opened", String(Date.now()));
  } catch {
    // A browser that keeps nothing: the next answer tells.
  }
  // A failure of Isabella's says where it belongs. One that does not is from something between, such as a reverse
  // proxy: its page must not be put where somebody is writing.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { isError, xhr } = event.detail;
    if (!isError || xhr.status === 401 || xhr.getResponseHeader("HX-Retarget")) return;
    event.detail.shouldSwap = false;
    const banner = document.createElement("div");
    banner.className = "banner bad";
    banner.textContent = `Isabella was not reached: something before her answered with ${xhr.status}. ` +
      "What you have written stays; try again in a moment.";
    document.getElementById("notice").replaceChildren(banner);
  });
  for (const silence of ["htmx:sendError", "htmx:timeout"]) document.addEventListener(silence, () => session());
  // What is asked for once is asked for again where it did not come: whoever opens it anew starts anew.
  document.addEventListener("htmx:afterRequest", (event) => {
    const { elt, successful } = event.detail;
    if (successful || !elt.matches?.("[hx-trigger$=' once']") || !elt.isConnected) return;
    // Closed before, because closing is a toggle, too: it would ask at once, again and again.
    elt.removeAttribute("open");
    const again = elt.cloneNode(true);
    elt.replaceWith(again);
    htmx.process(again);
  });
  document.addEventListener("htmx:beforeRequest", () => document.getElementById("notice").replaceChildren());

  // --- while something is being replaced ----------------------------------------------------------------------------

  // What an answer is about to replace takes neither clicks nor text: they would go with it.
  document.addEventListener("htmx:beforeSend", (event) => {
    const { elt, target, xhr } = event.detail;
    if (elt.closest("[hx-swap]")?.getAttribute("hx-swap") !== "outerHTML") return;
    const focused = document.activeElement;
    target.inert = true;
    // After htmx has put the answer in place, or there was none, or it went elsewhere and the target stays.
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
    const address = main.dataset.live;
    if (!address || source || document.hidden) return;
    clearTimeout(timer);
    source = new EventSource(address);
    source.addEventListener("put", (event) => put(event.data));
    source.onopen = () => {
      pause = 500;
      main.dataset.connected = "yes";
      say("");
    };
    source.onerror = () => {
      delete main.dataset.connected;
      const closed = source.readyState === EventSource.CLOSED;
      if (!closed) {
        say(AWAY);
        return;
      }
      disconnect();
      // A browser gives up on anything but silence: ask what it is, and try again.
      session();
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

  // A browser opens six connections to a host at most: pages that nobody sees must not hold one.
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", connect);

  // Fragments are put where their ids say; those for what is not on the page are left out.
  function put(html) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    for (const part of [...holder.content.children]) {
      const where = part.getAttribute("hx-swap-oob") || "";
      const id = where.includes("#") ? where.split("#")[1] : part.id;
      if (!document.getElementById(id)) part.remove();
    }
    if (!holder.content.childElementCount) return;
    noteScroll();
    const open = [...document.querySelectorAll("details[open][id]")].map((one) => one.id);
    htmx.swap(document.body, holder.innerHTML, { swapStyle: "none" });
    for (const id of open) {
      const one = document.getElementById(id);
      if (one && !one.open) one.open = true;
    }
    settle(document);
    if (following) toEnd();
    if (main.dataset.untilUp && document.querySelector("[data-up]")) location.reload();
  }

  // --- after anything was put in place -----------------------------------------------------------------------------

  function settle(within) {
    localize(within);
    for (const note of document.querySelectorAll("[id^='else-'][data-version]")) {
      const form = note.closest("form");
      const differs = form && form.elements.version.value !== note.dataset.version;
      note.textContent = differs ? "This was changed meanwhile. Saving will show you both texts, and overwrite neither." : "";
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
    // Letta counts characters, not the halves of those that JavaScript counts twice.
    const used = [...area.value].length;
    const limit = Number(area.dataset.limit);
    counter.textContent = `${used.toLocaleString("en")} of ${limit.toLocaleString("en")} characters`;
    counter.classList.toggle("bad", used > limit);
  });

  document.addEventListener("htmx:afterRequest", (event) => {
    const form = event.detail.elt;
    if (form.matches?.("[data-reset]") && event.detail.successful) {
      form.reset();
      document.getElementById("none")?.remove();
    }
  });

  // --- conversation --------------------------------------------------------------------------------------------------

  // Who is at the end stays there, however tall what comes is; who has scrolled up is not moved.
  let following = true;
  let position = 0;
  const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 8;
  const toEnd = () => {
    following = true;
    if (scroll) scroll.scrollTop = scroll.scrollHeight;
  };
  // More may have come below since the reader moved: only going up means to leave the end.
  const noteScroll = () => {
    if (!scroll) return;
    if (atEnd()) following = true;
    else if (scroll.scrollTop < position) following = false;
    position = scroll.scrollTop;
  };
  if (scroll) {
    scroll.addEventListener("scroll", noteScroll);
    // A step that is unfolded is being read where it is.
    scroll.addEventListener("toggle", () => (following = atEnd()), true);
    // The place to write in grows with the text, at the cost of what is above it.
    new ResizeObserver(() => following && toEnd()).observe(scroll);
  }

  const composer = document.getElementById("composer");
  if (composer) {
    const message = composer.elements.message;
    message.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (message.value.trim()) composer.requestSubmit();
      }
    });
    // Emptied at once, so that the next message can be typed; given back where it was not taken.
    composer.addEventListener("htmx:beforeSend", () => {
      composer.dataset.sent = message.value;
      message.value = "";
      document.getElementById("empty")?.remove();
    });
    composer.addEventListener("htmx:afterRequest", (event) => {
      if (event.detail.elt !== composer) return;
      if (!event.detail.successful) message.value = composer.dataset.sent + (message.value ? `\n${message.value}` : "");
      else toEnd();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") document.querySelector("[data-key='Escape']")?.click();
    });
    document.addEventListener("click", (event) => {
      const again = event.target.closest?.("[data-again]");
      if (!again) return;
      message.value = again.dataset.again;
      message.focus();
    });
  }

  if (scroll) {
    // What comes in above must not move what is being read.
    let height = 0;
    document.addEventListener("htmx:beforeSwap", (event) => {
      const { shouldSwap, target } = event.detail;
      if (shouldSwap && target?.id === "earlier") height = scroll.scrollHeight - scroll.scrollTop;
    });
    document.addEventListener("htmx:afterSwap", () => {
      if (!height) return;
      scroll.scrollTop = scroll.scrollHeight - height;
      height = 0;
    });
    const anchor = scroll.dataset.anchor && document.getElementById(`m-${scroll.dataset.anchor}`);
    if (anchor) {
      anchor.scrollIntoView({ block: "center" });
      anchor.classList.add("found");
    } else {
      toEnd();
    }
  }

  // Menus close when one goes elsewhere.
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });

  localize(document);
  connect();
})();
