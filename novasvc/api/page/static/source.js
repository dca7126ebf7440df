// The source of updates: server-sent events or, where they do not work, polling.
//
// A silent stream is closed, whatever the browser thinks of its connection. The next one sends the id of the last
// message, so no update is missed or repeated.

import { now } from "./time.js";

const SILENCE = 9; // seconds; the server sends a message every 4
const AGAIN = [1, 2, 3, 5]; // seconds to the next attempt
const STREAMS = 2; // streams that may fail while polling works, before the page only polls
const POLL = 3; // seconds

export class Source {
  // address: may have a query. known: the id that the page has. listener: has news(), lost(why) and ended().
  constructor(address, known, listener) {
    this.address = address;
    this.known = known;
    this.listener = listener;
    this.failures = 0;
    this.unstreamed = 0;
    this.stream = null;
    this.timer = null;
    this.heard = now();
    this.stopped = false;
    setInterval(() => this.lookAfter(), 1000);
    addEventListener("pagehide", () => this.stop());
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
    this.open();
  }

  url(parameters) {
    const url = new URL(this.address, location.href);
    for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
    return url;
  }

  open() {
    this.timer = null;
    if (this.stopped) return;
    if (this.unstreamed >= STREAMS || !("EventSource" in window)) {
      this.poll();
      return;
    }
    this.heard = now();
    this.stream = new EventSource(this.url({ since: this.known }));
    this.stream.addEventListener("news", (event) => {
      this.unstreamed = 0;
      this.take(JSON.parse(event.data));
    });
    this.stream.addEventListener("alive", () => { this.heard = now(); });
    this.stream.addEventListener("bye", () => { this.end(); });
    this.stream.addEventListener("error", () => this.broken());
  }

  take(news) {
    this.heard = now();
    this.failures = 0;
    if (news.id) this.known = news.id;
    this.listener.news(news);
  }

  close() {
    if (this.stream) this.stream.close();
    this.stream = null;
  }

  broken() {
    if (!this.stream) return;
    this.close();
    // An EventSource does not say why it failed; a poll does.
    this.ask().then((answered) => {
      if (answered) this.unstreamed += 1;
      this.again();
    });
  }

  async ask() {
    try {
      const response = await fetch(this.url({ since: this.known, poll: 1 }), { signal: AbortSignal.timeout(5000) });
      if (response.status === 401) {
        this.end();
        return false;
      }
      if (!response.ok) throw new Error(`${response.status}`);
      const news = await response.json();
      if (!this.stopped) this.take(news);
      return true;
    } catch {
      if (!this.stopped) this.listener.lost();
      return false;
    }
  }

  async poll() {
    await this.ask();
    this.again();
  }

  again() {
    if (this.stopped || this.timer) return;
    const polling = this.unstreamed >= STREAMS && !this.failures;
    const wait = polling ? POLL : AGAIN[Math.min(this.failures, AGAIN.length - 1)];
    this.failures += 1;
    this.timer = setTimeout(() => this.open(), wait * 1000);
  }

  lookAfter() {
    if (this.stream && now() - this.heard > SILENCE) {
      this.listener.lost();
      this.broken();
    }
  }

  end() {
    this.stop();
    this.listener.ended();
  }

  stop() {
    this.stopped = true;
    this.close();
    clearTimeout(this.timer);
  }
}
