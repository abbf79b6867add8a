// componentize.mjs CORE OUTPUT: a core module that has the ABI of wasi:http's incoming-handler, 0.2.12, becomes a component of it.
// Beside node_modules, where jco has the interfaces.

import { componentEmbed, componentNew } from "@bytecodealliance/jco";
import { readdir, readFile, writeFile } from "node:fs/promises";

const [core, output] = process.argv.slice(2);
const packages = new URL("node_modules/@bytecodealliance/jco/lib/wit/builtin/0.2.12/", import.meta.url);

// As one text: jco reads no folders here.
const nested = async (folder) =>
  (await readFile(new URL(`${folder}/package.wit`, packages), "utf8")).replace(/^package (.*);$/m, "package $1 {") + "}\n";
const world = "package wherry:guests;\nworld app { export wasi:http/incoming-handler@0.2.12; }\n";
const witSource = world + (await Promise.all((await readdir(packages)).map(nested))).join("");
await writeFile(output, await componentNew(await componentEmbed({ binary: await readFile(core), witSource, world: "app" }), []));
