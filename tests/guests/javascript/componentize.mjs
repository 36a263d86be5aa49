// Bundles a program with esbuild and makes a component of it: `node componentize.mjs SOURCE OUTPUT`.
//
// WASI's interfaces come from the jco package that componentize-js depends on. It ships all of 0.2.12,
// yet the engine inside componentize-js exports the HTTP handler of 0.2.10; patch releases of 0.2 hold
// the same functions, so the text is relabelled.
import { mkdir, readdir, readFile, cp, rm, writeFile } from 'node:fs/promises';
import { build } from 'esbuild';
import { componentize } from '@bytecodealliance/componentize-js';

const [source, output] = process.argv.slice(2);
const shipped = 'node_modules/@bytecodealliance/jco/lib/wit/builtin/0.2.12';
await rm('wit', { recursive: true, force: true });
for (const name of await readdir(shipped)) {
  await mkdir(`wit/deps/${name}`, { recursive: true });
  const text = await readFile(`${shipped}/${name}/package.wit`, 'utf8');
  await writeFile(`wit/deps/${name}/package.wit`, text.replaceAll('0.2.12', '0.2.10'));
}
await cp('world.wit', 'wit/world.wit');
await build({ entryPoints: [source], bundle: true, format: 'esm', outfile: 'bundle.js', logLevel: 'error' });
const { component } = await componentize({ sourcePath: 'bundle.js', witPath: 'wit', worldName: 'guest' });
await writeFile(output, component);
