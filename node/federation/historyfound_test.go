package federation

import "testing"

// foundScripts are scripts that histories found and that failed once, minimised, each with what was wrong.
var foundScripts = []struct{ wrong, script string }{
	{"events from before a join came as news, were measured by the rules of now and stayed extremities", `
room 4 12 public shared b0=100 a1=100 a2=100
join b0 0
send 0 3
join a2 0
join a3 0
rule a0 knock`},
	{"a server that had itself out of the room, and was sent its events, asked nobody for what they missed", `
room 3 3 public world_readable a1=100 b1=100 a2=50 b2=100
join a1 0
join b1 0
join a2 0
send 2 1
inbox 1
send 1 2
send 1 0
invite b1 b2
join b2 2
rule a1 invite
unban a0 a2
send 0 1
unban a1 a1
send 1 2
name a2 n658
power b1 b1 99`},
	{"a leave was made beside a join, and hidden from who joined by history visibility", `
room 8 11 knock joined a1=50 a2=50 a3=100 a4=50 a5=100 a6=50 a7=50
invite a0 a1
join a1 0
invite a0 a2
join a2 0
unban a1 a1
leave a0`},
	{"a server whose user left and whose other user joined was taken for new, and not given what came between", `
room 5 7 public invited a2=50 b2=50 a3=100 b3=100 a4=100
join a1 0
join a3 0
join b3 0
unban a3 a3
kick b3 a1
invite a1 a3`},
	{"a server took in its removal on a claimed state of which an event was not to be had", `
room 4 12 public joined a1=50 a2=100 a3=100
join a1 0
join a2 0
join a3 0
send 3 2 late=send
inbox 2
unban a2 a1
send 2 3
leave a2 hold=make_leave
join a2 3
kick a3 a1
send 3 2
send 3 1 twice=send
inbox 1
invite a2 a1
join a1 2`},
	{"a banned server was given the room's state of later with its unban", `
room 3 10 public joined a2=100
join a1 0
ban a0 a1
join a2 0
unban a0 a1`},
	{"power levels on a fork from before a join were given redacted, and without their invite level", `
room 6 3 invite invited a1=100 a2=50 b2=50 a3=100 a4=50 b4=50
invite a0 a3
join a3 0
invite a0 a4
join a4 0
level a3 invite 100
name a3 n20
invite a4 b4`},
	{"so were such power levels though others had taken their place, and who was given them rejected the others", `
room 5 3 invite invited a3=100 b3=50 a4=50
invite a0 a3
join a3 0
invite a3 b3
join b3 3
invite a0 a4
join a4 0
level a3 invite 100
level b3 kick 0`},
	{"an event of the room's state that history visibility hid was not given to who fetched the rest of that state by IDs", `
room 4 12 invite world_readable a1=100 a2=100 b2=100 a3=100 b3=50
invite a0 a3
join a3 0
visibility a3 joined
leave a3
send 3 0
invite a0 a1
join a1 0 answer=send_join`},
	{"what a server sent that others had resolved out of the room waited for parents that it alone had, and it was not asked", `
room 5 9 public shared a1=50 a2=50 a4=100
join a2 0
join a4 0
kick a0 a0
rule a2 invite
visibility a4 invited
ban a4 a2`},
	{"such a server's join was to be had from it alone, and what it did was taken in on a claimed state", `
room 8 10 public shared a1=50 b1=50 a4=50 b4=100 a5=50 a6=100 a7=100 b7=50
join a1 0
join a4 0
join b4 0
join a6 0
join b6 0
join a7 0
rule a4 invite
unban b4 a1
ban a1 b6
level a7 state_default 50`},
	{"an event was not sent to a server that was in the room when it was made, and was out when the sender looked", `
room 8 10 public shared a1=50 b1=50 a4=50 b4=100 a5=50 a6=100 a7=100 b7=50
join b1 0
join a3 0
join a4 0
join b4 0
join a5 0
join b6 0
join a7 0
fork a0 27 say b1
meet 3 0 hold=state_ids:4
rule a5 invite
join a6 7 late=query:2
meet 3 5 break=:7
ban a6 a4
power b4 b4 50`},
	{"an extremity of the past stayed one, as it was tied to the timeline by several events paged back for", `
room 5 12 public shared a1=100 a2=100 a3=100 b3=50 a4=100
join a2 0
join a3 0
join b3 0
join a4 0
unban a4 b3
rule a4 knock
power a2 a2 50
say b3
say a3
rule a2 public
split 0 2 | 1 3 4
join a1 3
invite b3 a3
power b3 a1 50
leave a1
invite b3 a1 hold=invite:2
invite a2 a1 answer=invite
join a1 2 hold=query
rule b3 knock`},
	{"an event that rested on one which waited was not asked for by the state before it, which was told, as that before the other was not", `
room 5 9 public shared a1=50 a2=50 a4=100
join a1 0
join a2 0
join a3 0
visibility a2 shared
kick a0 a0
join a0 2
rule a2 invite
ban a0 a1
leave a2`},
	{"what a server sent itself, at odds with all that it knew, was taken for given by the others", `
room 4 9 public invited a2=100
join a2 0
join a3 0
ban a0 a3
leave a0
visibility a2 shared
fork a2 6 ban a3
meet 2 0 late=event:3
power a2 a2 0
say a2
fork a2 17 ban a1`},
	{"a true claim was resolved once more with the state after a parent that was held, and came out as another", `
room 3 11 public joined
join a1 0
join a2 0
meet 2 0
leave a1
fork a0 1 power a2
rule a0 invite
power a0 a2 50
send 0 1 hold=send:3
join a1 0
say a1
say a0`},
	{"history behind our own join, before which nobody may tell us the state, kept other history of the same page away", `
room 3 10 public invited
send 0 1
join a1 0
join a2 0
visibility a0 shared
unban a0 a2
power a0 a1 50
send 0 2
send 0 1
inbox 1
ban a1 b0
send 1 2
leave a0
join a2 0`},
	{"the first events of the room, held as part of its state, were no history unless somebody gave them again", `
room 3 12 public joined b0=100 a1=50 a2=100
join b0 0
send 0 2
join a1 0
join b1 0
send 1 0
join a2 0
send 0 1
inbox 1
split 0 2 | 1
fork b0 4 topic a0
heal
unban a0 a0
leave a1
send 1 2
leave b0`},
}

func TestFoundHistories(t *testing.T) { // not parallel, as TestHistories
	for _, found := range foundScripts {
		s, err := parseScript(found.script)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := play(t.Context(), s, nil, nil); err != nil {
			t.Errorf("%s:\n%s%v", found.wrong, s, err)
		}
	}
}
