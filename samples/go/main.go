// Formats the JSON that it is sent, or says in which line it is wrong. net/http's own router and handlers, served as CGI:
// there is a process for each request, and what would listen on a port elsewhere is one line here.
//
// Build it: GOOS=wasip1 GOARCH=wasm go build -ldflags=-s -o json.wasm
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"sort"
	"strconv"
	"strings"
)

const mostBytes = 1 << 20

func main() {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "POST JSON to http://%s/format?indent=2, or to /keys\n", r.Host)
	})
	routes.HandleFunc("POST /format", format)
	routes.HandleFunc("POST /keys", keys)
	if err := cgi.Serve(routes); err != nil {
		log.Fatal(err)
	}
}

func format(w http.ResponseWriter, r *http.Request) {
	width, err := strconv.Atoi(r.URL.Query().Get("indent"))
	if err != nil || width < 0 || width > 8 {
		width = 2
	}
	sent, ok := read(w, r)
	if !ok {
		return
	}
	var out bytes.Buffer
	if err := json.Indent(&out, sent, "", strings.Repeat(" ", width)); err != nil {
		refuse(w, sent, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	out.WriteByte('\n')
	out.WriteTo(w)
}

// keys answers with how often each key of any object occurs.
func keys(w http.ResponseWriter, r *http.Request) {
	sent, ok := read(w, r)
	if !ok {
		return
	}
	var value any
	if err := json.Unmarshal(sent, &value); err != nil {
		refuse(w, sent, err)
		return
	}
	counts := map[string]int{}
	count(value, counts)
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(w, "%d %s\n", counts[name], name)
	}
}

func count(value any, counts map[string]int) {
	switch value := value.(type) {
	case map[string]any:
		for name, inner := range value {
			counts[name]++
			count(inner, counts)
		}
	case []any:
		for _, inner := range value {
			count(inner, counts)
		}
	}
}

func read(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	sent, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBytes))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		http.Error(w, fmt.Sprintf("more than %d bytes", tooLong.Limit), http.StatusRequestEntityTooLarge)
		return nil, false
	}
	if err != nil {
		log.Print(err)
		http.Error(w, "the body ended early", http.StatusBadRequest)
		return nil, false
	}
	return sent, true
}

func refuse(w http.ResponseWriter, sent []byte, err error) {
	line := 1
	if wrong := (*json.SyntaxError)(nil); errors.As(err, &wrong) {
		line += bytes.Count(sent[:wrong.Offset], []byte("\n"))
	}
	log.Printf("not JSON: %v", err) // standard error is the app's log
	http.Error(w, fmt.Sprintf("line %d: %v", line, err), http.StatusUnprocessableEntity)
}
