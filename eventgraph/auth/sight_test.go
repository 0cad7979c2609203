package auth

import "testing"

func TestMaySee(t *testing.T) {
	t.Parallel()
	in := func(visibility string) Sight { return Sight{Visibility: visibility, Joined: true} }
	invited := func(visibility string) Sight { return Sight{Visibility: visibility, Invited: true} }
	out := func(visibility string) Sight { return Sight{Visibility: visibility} }
	here, gone := Sight{Joined: true}, Sight{}

	for _, row := range []struct {
		name    string
		at, now Sight
		want    bool
	}{
		{"world_readable, a stranger", out("world_readable"), gone, true},
		{"shared, joined then", in("shared"), here, true},
		{"shared, joined then, gone now", in("shared"), gone, true},
		{"shared, joined later", out("shared"), here, true},
		{"shared, never joined", out("shared"), gone, false},
		{"shared, only invited then", invited("shared"), gone, false},
		{"shared, only invited now", out("shared"), Sight{Invited: true}, false},
		{"default, joined later", out(""), here, true},
		{"default, never joined", out(""), gone, false},
		{"not understood, joined later", out("x"), here, true},
		{"not understood, never joined", out("x"), gone, false},
		{"invited, joined then, gone now", in("invited"), gone, true},
		{"invited, invited then", invited("invited"), gone, true},
		{"invited, joined later", out("invited"), here, false},
		{"joined, joined then, gone now", in("joined"), gone, true},
		{"joined, invited then, joined later", invited("joined"), here, false},
		{"joined, joined later", out("joined"), here, false},
		{"world_readable only now", out("joined"), Sight{Visibility: "world_readable"}, false},
	} {
		if got := MaySee(row.at, row.at, row.now, false); got != row.want {
			t.Errorf("%s: %t", row.name, got)
		}
		// The more permissive of before and after; an event addressed to the reader in any case.
		if got := MaySee(row.at, out("joined"), row.now, false); got != row.want {
			t.Errorf("%s, before: %t", row.name, got)
		}
		if got := MaySee(out("joined"), row.at, row.now, false); got != row.want {
			t.Errorf("%s, after: %t", row.name, got)
		}
		if !MaySee(row.at, row.at, row.now, true) {
			t.Errorf("%s: an own membership event is hidden", row.name)
		}
	}
}
