// Caches the page itself, so that it opens offline. The package caches the models.

/// <reference lib="webworker" />

import { EXAMPLES } from "./examples.js";

interface Scope {
  skipWaiting(): void;
  clients: { claim(): Promise<void> };
  registration: { scope: string };
  addEventListener(type: "install" | "activate", listener: (event: { waitUntil(done: Promise<unknown>): void }) => void): void;
  addEventListener(
    type: "fetch",
    listener: (event: { request: Request; respondWith(response: Promise<Response>): void }) => void,
  ): void;
}

const scope = self as unknown as Scope;
const NAME = "mgm-demo";
const FILES = [
  "./", "index.html", "app.js", "attention-map.js", "worker.js", "mgm_web_bg.wasm", "style.css", "icon.svg", "models.json",
  ...EXAMPLES.flatMap(({ image }) => image ?? []),
];

scope.addEventListener("install", (event) => {
  scope.skipWaiting();
  // A missing file must not prevent the others.
  event.waitUntil(caches.open(NAME).then((cache) => Promise.allSettled(FILES.map((file) => cache.add(file)))));
});

scope.addEventListener("activate", (event) => event.waitUntil(scope.clients.claim()));

scope.addEventListener("fetch", (event) => {
  const { request } = event;
  const address = request.url.split(/[?#]/)[0] ?? "";
  const own = FILES.some((file) => address === new URL(file, scope.registration.scope).href);
  if (request.method !== "GET" || !own) return;
  // The network comes first, so that the page is up to date.
  event.respondWith(
    fetch(request)
      .then(async (response) => {
        if (response.ok) await (await caches.open(NAME)).put(request, response.clone());
        return response;
      })
      .catch(async () => (await caches.match(request)) ?? Response.error()),
  );
});
