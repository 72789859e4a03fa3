package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coracle-engine/coracle/host/api"
)

// barWidth is the length of a timeline's bars, in characters.
const barWidth = 32

// timeline is the table of a start's steps in their order, with a bar for each on a terminal. The times count from the
// launch of the command that asked for the start.
func timeline(out screen, steps []api.Step) {
	steps = slices.Clone(steps)
	slices.SortStableFunc(steps, func(a, b api.Step) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(b.End, a.End))
	})
	var total time.Duration
	for _, s := range steps {
		total = max(total, s.End)
	}
	rows := [][]string{{"WHERE", "STEP", "  START", "   TOOK"}}
	for _, s := range steps {
		row := []string{printable(s.Where), printable(s.Name), seconds(s.Start), seconds(s.End - s.Start)}
		if out.tty {
			row = append(row, bar(s, total))
		}
		rows = append(rows, row)
	}
	out.table(rows)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%7.3f", d.Seconds()) }

// bar is where in total a step lies: at least one mark long, within barWidth whatever the step's times are.
func bar(s api.Step, total time.Duration) string {
	if total <= 0 {
		return ""
	}
	column := func(d time.Duration) int { return int(barWidth * min(max(d.Seconds()/total.Seconds(), 0), 1)) }
	from := min(column(s.Start), barWidth-1)
	to := max(column(s.End), from+1)
	return strings.Repeat("·", from) + strings.Repeat("█", to-from) + strings.Repeat("·", barWidth-to)
}
