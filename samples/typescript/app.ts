// Makes a palette of shades from one colour: /336699 is a picture (SVG), /336699.json the values.
type Colour = readonly [red: number, green: number, blue: number];

function parse(text: string): Colour | undefined {
  const digits = /^([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(text);
  return digits ? [parseInt(digits[1]!, 16), parseInt(digits[2]!, 16), parseInt(digits[3]!, 16)] : undefined;
}

/** From the colour itself towards black (`to` 0) or white (`to` 255). */
const mix = (colour: Colour, to: number, part: number): Colour =>
  colour.map((value) => Math.round(value + (to - value) * part)) as unknown as Colour;

const hex = (colour: Colour): string => '#' + colour.map((value) => value.toString(16).padStart(2, '0')).join('');

function palette(base: Colour): string[] {
  const parts = [0.8, 0.6, 0.4, 0.2];
  const light = parts.map((part) => hex(mix(base, 255, part)));
  return [...light, hex(base), ...parts.reverse().map((part) => hex(mix(base, 0, part)))];
}

function answer(request: Request): Response {
  const [name, kind] = new URL(request.url).pathname.slice(1).split('.', 2);
  const base = parse(name || '336699');
  if (!base) return new Response('six hexadecimal digits make a colour: /336699\n', { status: 400 });
  const shades = palette(base);
  if (kind === 'json') return Response.json({ base: hex(base), shades });
  const boxes = shades.map((shade, n) => `<rect x="${n * 60}" width="60" height="90" fill="${shade}"/>`).join('');
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${shades.length * 60}" height="90">${boxes}</svg>\n`;
  return new Response(svg, { headers: { 'content-type': 'image/svg+xml' } });
}

// The event's type is the browser's; the engine in the component has the same.
addEventListener('fetch', (event: any) => event.respondWith(answer(event.request)));
