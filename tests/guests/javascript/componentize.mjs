// Bundles app.js with esbuild and makes a component of it: `node componentize.mjs OUTPUT`.
// WASI's interfaces come from the jco package that componentize-js depends on.
import { cp, mkdir, rm, writeFile } from 'node:fs/promises';
import { build } from 'esbuild';
import { componentize } from '@bytecodealliance/componentize-js';

const output = process.argv[2];
await rm('wit', { recursive: true, force: true });
await mkdir('wit', { recursive: true });
await cp('world.wit', 'wit/world.wit');
await cp('node_modules/@bytecodealliance/jco/lib/wit/builtin/0.2.10', 'wit/deps', { recursive: true });
await build({ entryPoints: ['app.js'], bundle: true, format: 'esm', outfile: 'bundle.js', logLevel: 'error' });
const { component } = await componentize({ sourcePath: 'bundle.js', witPath: 'wit', worldName: 'guest' });
await writeFile(output, component);
