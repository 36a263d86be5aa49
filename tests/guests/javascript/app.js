// A guest in JavaScript: another toolchain's component, unchanged, and of real size.
const started = Date.now();

async function answer(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case '/':
      return new Response('hello from JavaScript\n');
    case '/echo':
      return new Response(await request.text());
    case '/json':
      return Response.json({ path: url.pathname, query: Object.fromEntries(url.searchParams), started: started > 0 });
    case '/throw':
      throw new Error('thrown, as asked');
    default:
      return new Response('no such page\n', { status: 404 });
  }
}

addEventListener('fetch', (event) => event.respondWith(answer(event.request)));
