package federation

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/store"
)

// Histories (design.md §9, ladder 4): whole rooms over 3 to 8 nodes that a network splits, delays, doubles and loses, while people ban, kick and
// promote each other on all sides of it. Each ends with the network healed and one further event from every joined server; then all
// servers joined in the resolved state must have the same state and every event that they may see, and a server that was removed nothing that was
// sent by who knew it.
//
// A script (historyscript_test.go) is made from a seed and a number; it is played (historyplay_test.go) over a network (historynet_test.go) in
// one goroutine, by the step functions of this package, so that the same script has the same trace; at the end all is looked at
// (historycheck_test.go). A script that fails is made as short as it still fails. States may differ in a stalemate alone
// (historystalemate_test.go), which is counted.

var (
	flagHistories = flag.Uint64("histories", 16, "how many histories TestHistories plays")
	flagSeed      = flag.Uint64("seed", 1, "seed of the histories")
	flagFrom      = flag.Uint64("from", 0, "number of the first history")
	flagHistory   = flag.Int64("history", -1, "play this history alone, and print it")
	flagScript    = flag.String("script", "", "play the script in this file alone, and print it")
	flagVerbose   = flag.Bool("log", false, "with -history or -script: print what the nodes log too")
	flagProgress  = flag.Bool("progress", false, "print how far it is, now and then")
)

// gcPercent lets garbage grow: a history holds little, and throws away much.
const gcPercent = 400

func TestHistories(t *testing.T) { // not parallel: it puts its own random numbers in the place of crypto/rand's
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	switch {
	case *flagScript != "":
		text, err := os.ReadFile(*flagScript)
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseScript(string(text))
		if err != nil {
			t.Fatal(err)
		}
		playAloud(t, s)
		return
	case *flagHistory >= 0:
		playAloud(t, newScript(*flagSeed, uint64(*flagHistory)))
		return
	}
	sum := newTally()
	began, said := time.Now(), time.Now()
	for n := *flagFrom; n < *flagFrom+*flagHistories; n++ {
		s := newScript(*flagSeed, n)
		w, err := play(t.Context(), s, nil, nil)
		if err != nil {
			fmt.Printf("history %d of seed %d: %v\nnow it is made shorter\n", n, *flagSeed, err)
			shortest := minimise(t, s, err)
			_, again := play(t.Context(), shortest, nil, nil)
			t.Fatalf("history %d of seed %d: %v\n\nplay it again: scripts/fedhistories -seed %d -history %d\nminimised, for -script FILE:\n%s%v",
				n, *flagSeed, err, *flagSeed, n, shortest, again)
		}
		sum.add(w.tally)
		if w.stalled {
			fmt.Printf("stalemate in number %d of seed %d\n", n, *flagSeed)
		}
		if w.again {
			fmt.Printf("more further events in number %d of seed %d\n", n, *flagSeed)
		}
		if w.mute != 0 {
			fmt.Printf("mute servers in number %d of seed %d\n", n, *flagSeed)
		}
		if w.deserted {
			fmt.Printf("deserted room in number %d of seed %d\n", n, *flagSeed)
		}
		if n%100 == 0 { // the same script, the same trace
			again, err := play(t.Context(), s, nil, nil)
			if err != nil || !slices.Equal(w.lines, again.lines) || !bytes.Equal(w.trace.Sum(nil), again.trace.Sum(nil)) {
				t.Fatalf("history %d of seed %d has another trace when it is played again (%v): %s", n, *flagSeed, err, firstDifference(w, again))
			}
		}
		if *flagProgress && time.Since(said) > 10*time.Second {
			said = time.Now()
			fmt.Printf("%d of %d histories, %.2f s each\n", n+1-*flagFrom, *flagHistories, time.Since(began).Seconds()/float64(n+1-*flagFrom))
		}
	}
	t.Logf("seed %d: %v; requests %v", *flagSeed, sum, sum.served)
	if sum.histories >= 10 && (sum.verdicts[store.SoftFailed] == 0 || sum.merges == 0 || sum.gone == 0) {
		t.Errorf("the histories do not have what they are to have: %v", sum)
	}
}

func firstDifference(a, b *world) string {
	for i := range min(len(a.lines), len(b.lines)) {
		if a.lines[i] != b.lines[i] {
			return "\n" + a.lines[i] + "\n" + b.lines[i]
		}
	}
	return "in the number of requests, or in length"
}

// playAloud plays one script and prints each step.
func playAloud(t *testing.T, s *script) {
	var log *slog.Logger
	if *flagVerbose {
		log = slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	fmt.Print(s)
	w, err := play(t.Context(), s, log, func(line string) { fmt.Println(line) })
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	t.Logf("trace %x; %v", w.trace.Sum(nil)[:8], w.tally)
}

// minimiseFor bounds the search for a shorter script.
const minimiseFor = 5 * time.Minute

// minimise leaves out steps as long as the script still fails in the same way (delta debugging).
func minimise(t *testing.T, s *script, err error) *script {
	kindOf := func(err error) string {
		var f *failure
		if errors.As(err, &f) {
			return f.kind
		}
		return ""
	}
	kind, began := kindOf(err), time.Now()
	fails := func(steps []string) bool {
		shorter := *s
		shorter.steps = steps
		_, err := play(t.Context(), &shorter, nil, nil)
		return err != nil && kindOf(err) == kind
	}
	steps := slices.Clone(s.steps)
	for size := (len(steps) + 1) / 2; size >= 1; {
		shorter := false
		for from := 0; from < len(steps) && time.Since(began) < minimiseFor; {
			without := slices.Concat(steps[:from], steps[min(from+size, len(steps)):])
			if fails(without) {
				steps, shorter = without, true
			} else {
				from += size
			}
		}
		if size == 1 && !shorter || time.Since(began) >= minimiseFor {
			break
		}
		if size > 1 {
			size = (size + 1) / 2
		}
	}
	shortest := *s
	shortest.steps = steps
	return &shortest
}
