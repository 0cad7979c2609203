package lab

import (
	"bytes"
	"encoding/xml"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

var (
	scenarioFile = flag.String("scenario", "", "the scenario that TestLab plays")
	pictureFile  = flag.String("picture", "", "where TestLab draws what happened, an SVG file")
	logFile      = flag.String("logs", "", "where TestLab writes what the nodes log, at the finest level")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// play plays a scenario in virtual time.
func play(t *testing.T, text string, o Options) (r *Result) {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	o.Dir = t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		if r, err = s.Run(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

// TestLab plays the scenario of scripts/lab.
func TestLab(t *testing.T) {
	if *scenarioFile == "" {
		t.Skip("scripts/lab SCENARIO runs it")
	}
	text, err := os.ReadFile(*scenarioFile)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Progress: os.Stderr}
	if *logFile != "" {
		f, err := os.Create(*logFile)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		o.Log = slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	begin := time.Now()
	r := play(t, string(text), o)
	r.Write(os.Stdout)
	t.Logf("%v of real time", time.Since(begin).Round(time.Second))
	if *pictureFile != "" {
		f, err := os.Create(*pictureFile)
		if err != nil {
			t.Fatal(err)
		}
		r.Draw(f)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.Failures) > 0 {
		t.Fail()
	}
}

// TestSmall: what a mesh of six nodes must do in an hour with a split, bad lines, and nodes that come and go.
func TestSmall(t *testing.T) {
	t.Parallel()
	r := play(t, small, Options{})
	for _, f := range r.Failures {
		t.Error(f)
	}
	if r.Messages < 20 || len(r.SinceSent) != r.Pairs || len(r.SinceReach) != r.Pairs || r.Virtual != 80*time.Minute {
		t.Errorf("%d messages, %d and %d deliveries of %d, in %v", r.Messages, len(r.SinceSent), len(r.SinceReach), r.Pairs, r.Virtual)
	}
	if longest := Percentile(r.SinceSent, 1); longest < 5*time.Minute {
		t.Errorf("the longest delivery took %v: nobody was away", longest)
	}
	if r.Copies < r.Pairs || r.Bytes["federation send"] == 0 || r.Bytes["plexus/meet/1"] == 0 {
		t.Errorf("%d copies for %d pairs, bytes %v", r.Copies, r.Pairs, r.Bytes)
	}
	reached := 0
	for _, row := range r.Reached {
		for _, n := range row {
			reached += n
		}
	}
	if reached != r.Pairs {
		t.Errorf("%d first copies for %d pairs", reached, r.Pairs)
	}
	var table, picture bytes.Buffer
	r.Write(&table)
	if !bytes.Contains(table.Bytes(), []byte("6 nodes, 2 rooms, seed 7: 1h20m0s")) {
		t.Errorf("the table is\n%s", &table)
	}
	r.Draw(&picture)
	if err := xml.Unmarshal(picture.Bytes(), new(struct{})); err != nil {
		t.Errorf("the picture: %v", err)
	}
}

const small = `
nodes 6
rooms 2
seed 7
line all delay 5ms jitter 5ms
line 4,5 delay 50ms rate 500kbit/s loss 5%   # radio
link 0 1 delay 1s
messages 60/h size 100
run 10m
split 0-2 / 3-5
run 20m
heal
sessions 5m online 50%
run 30m
messages off
online
run 20m
expect equal
expect delivered 100%
expect within 60s
expect copies 6
`

// TestSealed: copies are found in what is gossiped too, and with gossip switched off nothing is.
func TestSealed(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{"on", "off"} {
		r := play(t, "nodes 10\ngossip "+setting+"\nline all delay 5ms\nrun 2m\nmeasure\nmessages 30/m\nrun 1m\nmessages off\nrun 5s\nexpect within 1s", Options{})
		for _, f := range r.Failures {
			t.Errorf("gossip %s: %s", setting, f)
		}
		reached := 0
		for _, row := range r.Reached {
			for _, n := range row {
				reached += n
			}
		}
		if reached != r.Pairs || r.Copies < r.Pairs || r.Messages < 15 {
			t.Errorf("gossip %s: %d messages, %d copies, %d first copies for %d pairs", setting, r.Messages, r.Copies, reached, r.Pairs)
		}
		if gossiped := r.Bytes["plexus/gossip/1"] > r.Bytes["federation send"]; gossiped != (setting == "on") {
			t.Errorf("gossip %s: %v", setting, r.Bytes)
		}
	}
}

// TestHeal: two halves that meet again are level as soon as they have met, though a node on a slow line takes long to answer: what one
// question asks for, another peer has brought meanwhile.
func TestHeal(t *testing.T) {
	t.Parallel()
	r := play(t, heal, Options{})
	for _, f := range r.Failures {
		t.Error(f)
	}
}

const heal = `
nodes 12
gossip off
line all delay 5ms jitter 5ms rate 20Mbit/s
line 10,11 delay 50ms jitter 50ms rate 1Mbit/s loss 5%   # radio
split 0-5 / 6-11
messages 120/h size 200
run 30m
messages off
heal
run 10m
expect equal
expect p95 5s
expect copies 2.5
`

// TestAwayForWeeks: who was away from the start gets all within seconds at the third hand, from one that was away too and was given it by
// who stayed. The first author has been away for two weeks by then, and the second, too, when the last node asks. Key documents, which are
// good for seven days (SS API, Publishing keys), have been replaced since that node left, and those of the first author have run out.
func TestAwayForWeeks(t *testing.T) {
	if testing.Short() {
		t.Skip("22 days of four nodes are seconds of computing, and a minute with the race detector")
	}
	t.Parallel()
	r := play(t, awayForWeeks, Options{})
	for _, f := range r.Failures {
		t.Error(f)
	}
	if r.Messages < 400 || len(r.SinceSent) != r.Pairs || Percentile(r.SinceSent, 1) < 20*24*time.Hour {
		t.Errorf("%d messages, %d deliveries of %d, the longest after %v", r.Messages, len(r.SinceSent), r.Pairs, Percentile(r.SinceSent, 1))
	}
}

const awayForWeeks = `
nodes 4
line all delay 5ms
offline 2,3
messages 1/h
run 192h             # 0 and 1 speak
offline 0
run 336h             # 1 speaks alone
messages off
online 2             # and hears all from 1
run 5m
offline 1
online 3             # and hears all from 2
run 5m
expect within 60s
online
run 20m
expect equal
`

// TestSeed: messages and contacts follow from the seed.
func TestSeed(t *testing.T) {
	t.Parallel()
	run := func(seed string) (messages, missedOrNot int) {
		r := play(t, "nodes 3\nseed "+seed+"\nsessions 10m online 60%\nmessages 60/h\nrun 2h\nmessages off\nonline\nrun 20m\nexpect equal", Options{})
		for _, f := range r.Failures {
			t.Error(f)
		}
		return r.Messages, len(r.Missed)
	}
	first, _ := run("1")
	if again, _ := run("1"); first != again || first == 0 {
		t.Errorf("%d messages, with the same seed %d", first, again)
	}
	if other, _ := run("2"); other == first {
		t.Errorf("%d messages with another seed, too", other)
	}
}

// TestUnmet: what is expected and does not happen is told by its line.
func TestUnmet(t *testing.T) {
	t.Parallel()
	r := play(t, "nodes 3\nmessages 60/h\noffline 2\nrun 30m\nexpect equal\nexpect delivered 50%\nexpect copies 0.1\nexpect p95 1ns", Options{})
	if len(r.Failures) != 2 || !strings.HasPrefix(r.Failures[0], "line 5: expect equal:") || !strings.HasPrefix(r.Failures[1], "line 7: expect copies 0.1:") {
		t.Errorf("failures: %q", r.Failures)
	}
}

// TestWithin: a delivery that took too long, a contact with a holder that was long and brought nothing, and a node that still waits, are
// each late.
func TestWithin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ deliver, part bool }{{false, false}, {false, true}, {true, false}} {
		synctest.Test(t, func(t *testing.T) {
			m := newMeter(2)
			number, _ := m.sends(0)
			m.holds(0, number)
			for _, d := range []time.Duration{time.Minute, time.Second} {
				time.Sleep(d)
				if d == time.Second {
					if c.deliver {
						m.holds(1, number)
					}
					if c.part {
						m.setOnline(1, false)
						time.Sleep(time.Hour)
					}
				}
				if err := m.expectWithin(time.Minute); (err != nil) != (d == time.Second) {
					t.Errorf("%+v, %v: %v", c, d, err)
				}
			}
		})
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("scenarios/*.txt")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(string(text)); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, wrong := range []string{
		"nodes", "nodes 0", "nodes 100000", "rooms 0", "run 1h\nnodes 3", "jump", "run", "run -1h", "run 1", "heal all",
		"line", "line 2 delay 1s", "line all delay", "line all delay 1", "line all loss 100%", "line all rate 1kbyte/s", "line all rate 0Mbit/s", "line all colour 1",
		"link 0", "link 0 1 up 1Mbit/s", "sessions 10m", "sessions 10m online 0%", "sessions 10m online 100%", "messages 60", "messages 60/d", "messages 60/h size 1",
		"offline", "online 0 1", "split 0 / 2", "split 1-0", "expect", "expect luck", "expect p95", "expect delivered 101%", "expect within 1", "gossip", "gossip maybe", "run 1h\ngossip on", "measure now",
	} {
		if _, err := Parse(wrong); err == nil || !strings.HasPrefix(err.Error(), "line ") {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

// TestFindMarker: markers are found where they are, also behind what only looks like one.
func TestFindMarker(t *testing.T) {
	t.Parallel()
	text := []byte("lab: lab:123456x: " + marker(42) + "lab:" + marker(9_999_999) + marker(1)[:markerLen-1])
	var got []int
	for n, rest := findMarker(text); n >= 0; n, rest = findMarker(rest) {
		got = append(got, n)
	}
	if !slices.Equal(got, []int{42, 9_999_999}) {
		t.Errorf("found %v", got)
	}
}
