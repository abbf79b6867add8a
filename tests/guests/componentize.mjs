// componentize.mjs CORE WIT OUTPUT: a core module that has the ABI of a world `app` becomes a component of it.

import { componentEmbed, componentNew } from "@bytecodealliance/jco";
import { readFile, writeFile } from "node:fs/promises";

const [core, wit, output] = process.argv.slice(2);

// As one text: jco reads no folders here.
const nested = async (path) => (await readFile(`${wit}/deps/${path}`, "utf8")).replace(/^package (.*);$/m, "package $1 {") + "}\n";
const witSource = (await readFile(`${wit}/world.wit`, "utf8")) + (await nested("io/io.wit")) + (await nested("http/http.wit"));
await writeFile(output, await componentNew(await componentEmbed({ binary: await readFile(core), witSource, world: "app" }), []));
