package lab

import (
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// The picture is 1000 by 560: delivery over time on the left, who reached whom on the right.
const (
	pictureWidth, pictureHeight = 1000, 560
	plotLeft, plotTop           = 60, 60
	plotWidth, plotHeight       = 400, 400
	circleX, circleY            = 750, 260
	circleRadius                = 190
	// maxEdges are drawn, those with the most messages: more than that is a grey disc.
	maxEdges = 1200
	// plotPoints bounds the corners of a curve.
	plotPoints = 400
)

// Draw writes the picture as SVG.
func (r *Result) Draw(w io.Writer) {
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">`+"\n",
		pictureWidth, pictureHeight)
	fmt.Fprintf(w, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	r.drawDelivery(w)
	r.drawGraph(w)
	fmt.Fprintln(w, "</svg>")
}

// drawDelivery draws the part of all pairs of message and other node that were delivered after a delay, on a logarithmic scale.
func (r *Result) drawDelivery(w io.Writer) {
	longest := max(Percentile(r.SinceSent, 1), Percentile(r.SinceReach, 1), time.Second)
	const shortest = time.Millisecond
	decades := math.Log10(float64(longest) / float64(shortest))
	x := func(d time.Duration) float64 {
		return plotLeft + plotWidth*max(0, math.Log10(float64(max(d, 1))/float64(shortest)))/decades
	}
	y := func(part float64) float64 { return plotTop + plotHeight*(1-part) }
	fmt.Fprintf(w, `<text x="%d" y="30" font-size="15">Delivered after</text>`+"\n", plotLeft)
	for _, part := range []float64{0, 0.25, 0.5, 0.75, 0.95, 1} {
		fmt.Fprintf(w, `<path d="M%d %.1fh%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g %%</text>`+"\n",
			plotLeft, y(part), plotWidth, plotLeft-6, y(part)+4, part*100)
	}
	for _, d := range []time.Duration{
		time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 10 * time.Second, time.Minute, 10 * time.Minute,
		time.Hour, 10 * time.Hour, 100 * time.Hour,
	} {
		if d <= longest {
			fmt.Fprintf(w, `<path d="M%.1f %dv%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
				x(d), plotTop, plotHeight, x(d), plotTop+plotHeight+18, short(d))
		}
	}
	for i, c := range []struct {
		name, color string
		delays      []time.Duration
	}{{"since the message was sent", "#1f77b4", r.SinceSent}, {"since a holder was in reach", "#d62728", r.SinceReach}} {
		fmt.Fprintf(w, `<path fill="none" stroke="%s" stroke-width="2" d="M%.1f %.1f`, c.color, x(0), y(0))
		points := min(plotPoints, len(c.delays))
		for p := 1; p <= points; p++ {
			n := p * len(c.delays) / points
			fmt.Fprintf(w, "L%.1f %.1f", x(c.delays[n-1]), y(each(n, r.Pairs)))
		}
		fmt.Fprintf(w, `"/><text x="%d" y="%d" fill="%s">%s</text>`+"\n", plotLeft+10, plotTop+plotHeight+40+16*i, c.color, c.name)
	}
}

// short is a duration without its zero parts.
func short(d time.Duration) string {
	switch {
	case d >= time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d >= time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d >= time.Second:
		return fmt.Sprintf("%d s", d/time.Second)
	}
	return fmt.Sprintf("%d ms", d/time.Millisecond)
}

// drawGraph draws the nodes on a circle, as large as what they gave to others first, and a line from each to whom it gave.
func (r *Result) drawGraph(w io.Writer) {
	type edge struct{ from, to, weight int }
	var edges []edge
	given := make([]int, len(r.Reached))
	for from, row := range r.Reached {
		for to, weight := range row {
			if given[from] += weight; weight > 0 {
				edges = append(edges, edge{from, to, weight})
			}
		}
	}
	slices.SortStableFunc(edges, func(a, b edge) int { return b.weight - a.weight })
	all := len(edges)
	edges = edges[:min(all, maxEdges)]
	at := func(i int) (x, y float64) {
		angle := 2*math.Pi*float64(i)/float64(len(r.Reached)) - math.Pi/2
		return circleX + circleRadius*math.Cos(angle), circleY + circleRadius*math.Sin(angle)
	}
	fmt.Fprintf(w, `<text x="%d" y="30" font-size="15">Who reached whom first</text>`+"\n", circleX-circleRadius)
	thin := min(1, 6*each(len(r.Reached), len(edges))) // many lines are drawn lightly
	for _, e := range slices.Backward(edges) {
		x1, y1 := at(e.from)
		x2, y2 := at(e.to)
		strength := thin * float64(e.weight) / float64(edges[0].weight)
		fmt.Fprintf(w, `<path d="M%.1f %.1fQ%d %d %.1f %.1f" fill="none" stroke="#1f77b4" stroke-width="%.2f" stroke-opacity="%.2f"/>`+"\n",
			x1, y1, circleX, circleY, x2, y2, 0.3+2*strength, 0.1+0.7*strength)
	}
	most := max(1, slices.Max(given))
	for i := range r.Reached {
		x, y := at(i)
		fmt.Fprintf(w, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="#d62728"><title>node %d gave %d</title></circle>`+"\n",
			x, y, 2+6*math.Sqrt(float64(given[i])/float64(most)), i, given[i])
		if len(r.Reached) <= 30 {
			fmt.Fprintf(w, `<text x="%.1f" y="%.1f" text-anchor="middle">%d</text>`+"\n", circleX+(x-circleX)*1.09, circleY+(y-circleY)*1.09+4, i)
		}
	}
	fmt.Fprintf(w, `<text x="%d" y="%d">%d of %d pairs drawn, from the one who gave to the one who got it</text>`+"\n",
		circleX-circleRadius, plotTop+plotHeight+40, len(edges), all)
	fmt.Fprintf(w, `<text x="%d" y="%d">%d nodes, %d messages, %.2f copies per node and message</text>`+"\n",
		circleX-circleRadius, plotTop+plotHeight+56, r.Scenario.Nodes, r.Messages, each(r.Copies, r.Pairs))
}
