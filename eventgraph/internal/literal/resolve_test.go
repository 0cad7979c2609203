package literal

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func ids(set map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(set)), " ")
}

func (h *history) resolution() *resolution {
	return &resolution{version: h.version, v: number(h.version), get: h.get, chains: map[string]map[string]bool{}}
}

func TestSeparate(t *testing.T) {
	t.Parallel()
	a, b, c := Key{"a", ""}, Key{"b", ""}, Key{"c", ""}
	unconflicted, conflicted := separate([]State{{a: "$1", b: "$2", c: "$4"}, {a: "$1", b: "$3"}})
	if !maps.Equal(unconflicted, State{a: "$1"}) {
		t.Errorf("unconflicted: %v", unconflicted)
	}
	if got := ids(conflicted); got != "$2 $3 $4" { // a key that one state lacks is conflicted
		t.Errorf("conflicted: %s", got)
	}
}

// chainHistory is a DAG of auth events alone: 5 → 4 → 2 → 1, 5 → 3 → 1, 6 → 3.
func chainHistory(t *testing.T) *history {
	h := newHistory(t, "6", nil)
	for _, link := range []string{"1", "2 1", "3 1", "4 2", "5 4 3", "6 3"} {
		names := strings.Fields(link)
		var auth []string
		for _, name := range names[1:] {
			auth = append(auth, "$"+name)
		}
		h.add("$"+names[0], alice, "x", names[0], object{}, auth)
	}
	return h
}

func TestChainsAndDifference(t *testing.T) {
	t.Parallel()
	h := chainHistory(t)
	r := h.resolution()
	for id, want := range map[string]string{"$5": "$1 $2 $3 $4", "$6": "$1 $3", "$1": "", "$none": ""} {
		if got := ids(r.authChain(id)); got != want {
			t.Errorf("auth chain of %s: %s, want %s", id, got, want)
		}
	}
	x, y := Key{"x", ""}, Key{"y", ""}
	// $5 and $6 are in no auth chain, so not in the difference.
	if got := ids(r.authDifference([]State{{x: "$5"}, {x: "$6"}})); got != "$2 $4" {
		t.Errorf("auth difference: %s", got)
	}
	// An event of a state is in its full auth chain only through another event of it.
	if got := ids(r.authDifference([]State{{x: "$4", y: "$5"}, {x: "$4"}})); got != "$3 $4" {
		t.Errorf("auth difference: %s", got)
	}
	if got := ids(r.authDifference([]State{{x: "$5"}})); got != "" {
		t.Errorf("auth difference of one state: %s", got)
	}
}

func TestConflictedSubgraph(t *testing.T) {
	t.Parallel()
	r := chainHistory(t).resolution()
	for conflicted, want := range map[string]string{
		"$5 $2":    "$2 $4 $5",
		"$5 $1":    "$1 $2 $3 $4 $5",
		"$5 $6":    "",
		"$6 $4 $1": "$1 $2 $3 $4 $6",
		"$5":       "",
	} {
		set := map[string]bool{}
		for _, id := range strings.Fields(conflicted) {
			set[id] = true
		}
		if got := ids(r.conflictedSubgraph(set)); got != want {
			t.Errorf("subgraph of %s: %s, want %s", conflicted, got, want)
		}
	}
}

func TestPowerEvents(t *testing.T) {
	t.Parallel()
	h := newHistory(t, "7", nil)
	for i, row := range []struct {
		sender, typ, stateKey, membership string
		want                              bool
	}{
		{alice, "m.room.power_levels", "", "", true}, {alice, "m.room.power_levels", "-", "", false},
		{alice, "m.room.join_rules", "", "", true}, {alice, "m.room.member", bob, "ban", true},
		{alice, "m.room.member", bob, "leave", true}, {bob, "m.room.member", bob, "leave", false},
		{alice, "m.room.member", bob, "invite", false}, {alice, "m.room.create", "", "", false},
		{alice, "m.room.third_party_invite", "t", "", false},
	} {
		e := h.add("$e", row.sender, row.typ, row.stateKey, object{"membership": row.membership}, nil)
		if powerEvent(e) != row.want {
			t.Errorf("row %d: %v", i, !row.want)
		}
	}
	if powerEvent(nil) {
		t.Error("no event is a power event")
	}
}

func TestReverseTopologicalPowerOrdering(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"6", "12"} {
		h, state := base(t, version, "public", object{"users": object{bob: 50}})
		set := map[string]bool{}
		put := func(id, sender, typ string, auth ...any) {
			e := h.put(maps.Clone(state), id, sender, typ, "", object{})
			e.JSON["auth_events"] = append(e.JSON["auth_events"].([]any), auth...)
			set[id] = true
		}
		put("$c2", carol, "m.room.join_rules")
		put("$c1", carol, "m.room.join_rules")
		put("$b", bob, "m.room.join_rules")
		put("$a2", alice, "m.room.join_rules", "$c1")
		put("$a1", alice, "m.room.join_rules", "$a2")
		h.get("$c1").JSON["origin_server_ts"] = h.get("$c2").JSON["origin_server_ts"]
		// bob is above carol; at one time $c1 is before $c2; $a2 is free once $c1 is out, and alice is then the highest in
		// version 12 (creator); in version 6 she is in no users, so has the level of carol and a later time than $c2.
		want := "$b $c1 $c2 $a2 $a1"
		if version == "12" {
			want = "$b $c1 $a2 $a1 $c2"
		}
		if got := strings.Join(h.resolution().reverseTopologicalPowerOrdering(set), " "); got != want {
			t.Errorf("version %s: %s, want %s", version, got, want)
		}
	}
}

func TestMainlineOrdering(t *testing.T) {
	t.Parallel()
	h := newHistory(t, "6", nil)
	add := func(id, typ string, auth ...string) {
		h.add(id, alice, typ, "", object{}, append(auth, "$create"))
	}
	add("$p2", "m.room.power_levels")
	add("$p1", "m.room.power_levels", "$p2")
	add("$p0", "m.room.power_levels", "$p1")
	add("$q", "m.room.power_levels", "$p1") // a branch: its own events are based on $p1
	add("$on0", "x", "$p0")
	add("$onq", "x", "$q")
	add("$on2late", "x", "$p2")
	add("$on2", "x", "$p2")
	add("$bare", "x")
	h.get("$on2").JSON["origin_server_ts"] = h.get("$p2").JSON["origin_server_ts"]
	set := map[string]bool{}
	for _, id := range []string{"$on0", "$onq", "$on2late", "$on2", "$bare", "$p0", "$p2"} {
		set[id] = true
	}
	// Position ∞ ($p2, $bare), 2 ($on2, $on2late), 1 ($p0 by its auth event, $onq), 0 ($on0).
	want := "$p2 $bare $on2 $on2late $p0 $onq $on0"
	if got := strings.Join(h.resolution().mainlineOrdering("$p0", set), " "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// Without a power levels event every position is ∞.
	want = "$on2 $p2 $p0 $on0 $onq $on2late $bare"
	if got := strings.Join(h.resolution().mainlineOrdering("", set), " "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestIterativeAuthChecks(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"6", "12"} {
		h, state := base(t, version, "public", nil)
		name := Key{"m.room.name", ""}
		h.put(maps.Clone(state), "$name", bob, "m.room.name", "", object{})
		h.put(maps.Clone(state), "$forbidden", carol, "m.room.name", "", object{})
		got := h.resolution().iterativeAuthChecks(State{}, []string{"$name", "$forbidden"})
		if !maps.Equal(got, State{name: "$name"}) {
			t.Errorf("version %s: from auth events: %v", version, got)
		}
		// A rejected auth event is not used: bob is then not joined.
		h.get("$bob").Rejected = true
		if got := h.resolution().iterativeAuthChecks(State{}, []string{"$name"}); len(got) != 0 {
			t.Errorf("version %s: a rejected auth event was used: %v", version, got)
		}
		// What the state holds comes before the auth event, rejected or not.
		if got := h.resolution().iterativeAuthChecks(state, []string{"$name"}); got[name] != "$name" {
			t.Errorf("version %s: an event of the state was not used", version)
		}
		h.get("$bob").Rejected = false
		banned := maps.Clone(state)
		h.put(banned, "$ban", alice, "m.room.member", bob, object{"membership": "ban"})
		if got := h.resolution().iterativeAuthChecks(banned, []string{"$name"}); got[name] != "" {
			t.Errorf("version %s: a banned user sets the name", version)
		}
	}
}

func TestResolveBanBeatsConcurrentName(t *testing.T) {
	t.Parallel()
	for v := 3; v <= 12; v++ {
		version := fmt.Sprint(v)
		h, state := base(t, version, "public", nil)
		left, right := maps.Clone(state), maps.Clone(state)
		h.put(left, "$ban", alice, "m.room.member", bob, object{"membership": "ban"})
		h.put(right, "$topic", bob, "m.room.topic", "", object{})
		resolved, full := Resolve(version, []State{left, right}, h.get)
		want := maps.Clone(state)
		want[Key{"m.room.member", bob}] = "$ban"
		if !maps.Equal(resolved, want) {
			t.Errorf("version %s: %v, want %v", version, resolved, want)
		}
		if got := ids(full); got != "$ban $bob $topic" {
			t.Errorf("version %s: full conflicted set %s", version, got)
		}
		swapped, _ := Resolve(version, []State{right, left, right}, h.get)
		if !maps.Equal(swapped, resolved) {
			t.Errorf("version %s: the order of the states matters: %v", version, swapped)
		}
		alone, full := Resolve(version, []State{left}, h.get)
		if !maps.Equal(alone, left) || len(full) != 0 {
			t.Errorf("version %s: one state resolves to %v, %v", version, alone, full)
		}
	}
}

func TestResolveFullConflictedSet(t *testing.T) {
	t.Parallel()
	x, z := Key{"x", ""}, Key{"z", ""}
	for version, want := range map[string]string{"11": "$2 $5", "12": "$2 $4 $5"} {
		h := chainHistory(t)
		h.add("$7", alice, "z", "", object{}, []string{"$5"}) // so every auth chain holds all of $1 to $5
		if _, full := Resolve(version, []State{{x: "$5", z: "$7"}, {x: "$2", z: "$7"}}, h.get); ids(full) != want {
			t.Errorf("version %s: %s, want %s", version, ids(full), want)
		}
	}
}

// A join in the auth chain of the kick that follows it is sorted with the power events (step 1). In step 4 it would come
// after the kick and undo it.
func TestResolveKickStaysAfterItsJoin(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"3", "12"} {
		h, state := base(t, version, "public", nil)
		joined := maps.Clone(state)
		h.put(joined, "$join", dave, "m.room.member", dave, object{"membership": "join"})
		kicked := maps.Clone(joined)
		h.put(kicked, "$kick", alice, "m.room.member", dave, object{"membership": "leave"})
		resolved, _ := Resolve(version, []State{joined, kicked}, h.get)
		if got := resolved[Key{"m.room.member", dave}]; got != "$kick" {
			t.Errorf("version %s: %s", version, got)
		}
	}
}

// Version 11 starts from the unconflicted state, where bob's power is gone; version 12 from nothing, so that bob's change
// of the join rules is judged by its own auth events.
func TestResolveStartsEmptyInVersion12(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{"11": "$rules", "12": "$open"} {
		h, state := base(t, version, "invite", object{"users": object{alice: 100, bob: 100}})
		if version == "12" {
			delete(h.get("$levels").content()["users"].(object), alice)
		}
		before := maps.Clone(state)
		h.put(before, "$open", bob, "m.room.join_rules", "", object{"join_rule": "public"})
		// Both states hold the levels that take bob's away, one of them lost his change of the rules.
		users := object{alice: 100}
		if version == "12" {
			users = object{}
		}
		h.put(state, "$lowered", alice, "m.room.power_levels", "", object{"users": users})
		left, right := maps.Clone(state), maps.Clone(state)
		right[Key{"m.room.join_rules", ""}] = "$open"
		resolved, _ := Resolve(version, []State{left, right}, h.get)
		if got := resolved[Key{"m.room.join_rules", ""}]; got != want {
			t.Errorf("version %s: the join rules are %s, want %s", version, got, want)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	for _, version := range []string{"11", "12"} {
		b.Run(version, func(b *testing.B) {
			h, state := base(&testing.T{}, version, "public", nil)
			left, right := maps.Clone(state), maps.Clone(state)
			for i := range 25 {
				levels := object{"users": object{bob: 50, fmt.Sprintf("@u%d:u", i): 1}}
				h.put(left, fmt.Sprintf("$l%d", i), alice, "m.room.power_levels", "", levels)
				h.put(right, fmt.Sprintf("$r%d", i), bob, "m.room.topic", fmt.Sprint(i), object{})
			}
			b.ReportAllocs()
			for b.Loop() {
				Resolve(version, []State{left, right}, h.get)
			}
		})
	}
}
