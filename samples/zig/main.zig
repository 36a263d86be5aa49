//! Draws the Mandelbrot set as a picture (BMP): ?width=400&x=-0.7&y=0&zoom=1. A CGI program: the query is in the
//! environment, the picture goes to standard output row by row. The CPU limit of the app bounds what a client can ask.
//!
//! Build it: zig build-exe -target wasm32-wasi -O ReleaseSmall main.zig
const std = @import("std");
const c = std.c;

extern "c" fn getenv(name: [*:0]const u8) ?[*:0]const u8;
extern "c" fn write(to: c_int, bytes: [*]const u8, count: usize) isize;

fn put(bytes: []const u8) void {
    var rest = bytes;
    while (rest.len > 0) {
        const n = write(1, rest.ptr, rest.len);
        // Nobody reads on: the rest is of no use.
        if (n <= 0) return;
        rest = rest[@intCast(n)..];
    }
}

/// A number of the query, or `default`.
fn number(query: []const u8, name: []const u8, default: f64) f64 {
    var pairs = std.mem.splitScalar(u8, query, '&');
    while (pairs.next()) |pair| {
        const at = std.mem.indexOfScalar(u8, pair, '=') orelse continue;
        if (std.mem.eql(u8, pair[0..at], name)) return std.fmt.parseFloat(f64, pair[at + 1 ..]) catch default;
    }
    return default;
}

/// How soon a point leaves, as a colour.
fn colour(cx: f64, cy: f64) [3]u8 {
    var x: f64 = 0;
    var y: f64 = 0;
    for (0..255) |n| {
        if (x * x + y * y > 4) {
            const shade: u8 = @intCast(n);
            return .{ 255 - shade, shade *% 7, shade *% 3 };
        }
        const next = x * x - y * y + cx;
        y = 2 * x * y + cy;
        x = next;
    }
    return .{ 0, 0, 0 };
}

pub fn main() void {
    const query = if (getenv("QUERY_STRING")) |q| std.mem.span(q) else "";
    const asked = number(query, "width", 400);
    const width: u32 = if (asked >= 16 and asked <= 2000) @intFromFloat(asked) else 400;
    const zoom = @max(number(query, "zoom", 1), 0.1);
    const left = number(query, "x", -0.7);
    const top = number(query, "y", 0);

    // A bitmap of 24 bits a point, rows padded to four bytes.
    const row = (width * 3 + 3) / 4 * 4;
    var header = [_]u8{0} ** 54;
    header[0..2].* = "BM".*;
    std.mem.writeInt(u32, header[2..6], 54 + row * width, .little);
    std.mem.writeInt(u32, header[10..14], 54, .little);
    std.mem.writeInt(u32, header[14..18], 40, .little);
    std.mem.writeInt(u32, header[18..22], width, .little);
    std.mem.writeInt(u32, header[22..26], width, .little);
    header[26] = 1;
    header[28] = 24;
    put("Content-Type: image/bmp\n\n");
    put(&header);

    var line = [_]u8{0} ** 6000;
    const step = 3.0 / (zoom * @as(f64, @floatFromInt(width)));
    const middle = @as(f64, @floatFromInt(width)) / 2;
    for (0..width) |j| {
        for (0..width) |i| {
            const x = left + (@as(f64, @floatFromInt(i)) - middle) * step;
            const y = top + (@as(f64, @floatFromInt(j)) - middle) * step;
            line[i * 3 ..][0..3].* = colour(x, y);
        }
        put(line[0..row]);
    }
}
