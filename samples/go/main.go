// A month's calendar as a web page: /2026/11. An ordinary net/http program; cgi.Serve is all that differs.
//
// Build it: GOOS=wasip1 GOARCH=wasm go build -o calendar.wasm
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"strconv"
	"time"
)

// show writes the page. Everything in it is a number or the name of a month: there is nothing to escape.
func show(w io.Writer, title string, weeks [][7]int) {
	fmt.Fprintf(w, "<!doctype html>\n<title>%s</title>\n<table>\n<caption>%s</caption>\n", title, title)
	fmt.Fprint(w, "<tr><th>Mo<th>Tu<th>We<th>Th<th>Fr<th>Sa<th>Su\n")
	for _, week := range weeks {
		fmt.Fprint(w, "<tr>")
		for _, day := range week {
			fmt.Fprint(w, "<td>")
			if day > 0 {
				fmt.Fprint(w, day)
			}
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "</table>")
}

// weeks gives the days of a month in rows of seven, Monday first; 0 is no day of it.
func weeks(first time.Time) [][7]int {
	var rows [][7]int
	column := (int(first.Weekday()) + 6) % 7
	for day := first; day.Month() == first.Month(); day = day.AddDate(0, 0, 1) {
		if column == 0 || len(rows) == 0 {
			rows = append(rows, [7]int{})
		}
		rows[len(rows)-1][column] = day.Day()
		column = (column + 1) % 7
	}
	return rows
}

func month(w http.ResponseWriter, r *http.Request) {
	year, yearError := strconv.Atoi(r.PathValue("year"))
	number, monthError := strconv.Atoi(r.PathValue("month"))
	if yearError != nil || monthError != nil || year < 1 || year > 9999 || number < 1 || number > 12 {
		http.Error(w, "ask for /YEAR/MONTH", http.StatusBadRequest)
		return
	}
	first := time.Date(year, time.Month(number), 1, 0, 0, 0, 0, time.UTC)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	show(w, first.Format("January 2006"), weeks(first))
}

func main() {
	http.HandleFunc("GET /{year}/{month}", month)
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, time.Now().UTC().Format("/2006/1"), http.StatusFound)
	})
	// One process, one request: it comes in the environment and on standard input.
	if err := cgi.Serve(http.DefaultServeMux); err != nil {
		log.Fatal(err)
	}
}
