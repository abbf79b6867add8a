// An HTTP API in JavaScript: GET /greet?name=Ada answers with JSON, GET /relayed?name=Ada with what another service answers.

const OTHER = "http://greeter.default.svc.cluster.local/greet";

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const [status, said] = await reply(request);
  console.log(status, request.url);
  return new Response(JSON.stringify(said) + "\n", { status, headers: { "Content-Type": "application/json" } });
}

async function reply(request) {
  if (request.method !== "GET") return [405, { error: "only GET" }];
  const { pathname, search, searchParams } = new URL(request.url);
  if (pathname === "/greet") return [200, { greeting: `Hello, ${searchParams.get("name") ?? "world"}!` }];
  if (pathname === "/relayed") return await relayed(OTHER + search);
  return [404, { error: `${pathname} is not known; try /greet?name=Ada` }];
}

async function relayed(url) {
  try {
    const other = await fetch(url);
    return [200, { relayed: await other.json() }];
  } catch (error) {
    return [502, { error: `${url} did not answer` }];
  }
}
