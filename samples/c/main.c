/* Serves the files that came along (files = "public/" in marcato.toml): a folder's index.html, the type by the name,
 * 404 for the rest. Plain C over stdio: what is asked is in the environment, what is printed is the answer (CGI).
 *
 * Build it: clang --target=wasm32-wasi -O2 main.c -o files.wasm */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *type_of(const char *path) {
    static const char *const types[][2] = {
        {".html", "text/html; charset=utf-8"}, {".css", "text/css"},         {".svg", "image/svg+xml"},
        {".txt", "text/plain; charset=utf-8"}, {".js", "text/javascript"}, {".png", "image/png"},
    };
    const char *end = strrchr(path, '.');
    for (size_t i = 0; end && i < sizeof types / sizeof *types; i++)
        if (!strcmp(end, types[i][0])) return types[i][1];
    return "application/octet-stream";
}

static int fail(int status, const char *why) {
    printf("Status: %d %s\nContent-Type: text/plain\n\n%s\n", status, why, why);
    return 0;
}

int main(void) {
    const char *method = getenv("REQUEST_METHOD"), *asked = getenv("PATH_INFO");
    char path[1024];
    struct stat found;
    if (!method || (strcmp(method, "GET") && strcmp(method, "HEAD"))) return fail(405, "Method Not Allowed");
    if (!asked || snprintf(path, sizeof path, "%s", asked) >= (int)sizeof path - 12) return fail(414, "URI Too Long");
    if (path[strlen(path) - 1] == '/') strcat(path, "index.html");

    /* The sandbox sees nothing but those files: a path with .. in it leads nowhere. */
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &found) || !S_ISREG(found.st_mode)) {
        fprintf(stderr, "no file %s\n", path);
        return fail(404, "Not Found");
    }
    printf("Content-Type: %s\nContent-Length: %lld\nCache-Control: max-age=60\n\n", type_of(path), (long long)found.st_size);
    char piece[65536];
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;) fwrite(piece, 1, n, stdout);
    return ferror(file) || fflush(stdout) ? 1 : 0;
}
