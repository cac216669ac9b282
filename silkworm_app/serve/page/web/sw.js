// Keeps the page and its model on the device: everything is fetched once, and answered from there with or without a network.
// Before this text the export writes CACHE, a name that changes with the files, and FILES, all of them.

const PREFIX = `silkworm_app ${self.registration.scope} `, NAME = PREFIX + CACHE;

self.addEventListener('install', e => e.waitUntil((async () => {
  await (await caches.open(NAME)).addAll(FILES.map(f => new Request(f, {cache: 'no-cache'})));
  await self.skipWaiting();
})()));

self.addEventListener('activate', e => e.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith(PREFIX) && name !== NAME) await caches.delete(name);
  await self.clients.claim();
})()));

self.addEventListener('fetch', e => {
  if (e.request.method !== 'GET') return;
  e.respondWith((async () => await (await caches.open(NAME)).match(e.request, {ignoreSearch: true}) || fetch(e.request))());
});
