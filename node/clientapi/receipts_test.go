package clientapi

import (
	"fmt"
	"strings"
	"testing"
)

// A receipt is in the thread of its event, or there is none (receipts.yaml, 400).
func TestReceiptOutsideItsThread(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	relating := func(kind, to, more string) string {
		return string(alice.message(room, fmt.Sprintf(`{"msgtype":"m.text","body":"t","m.relates_to":{"rel_type":%q,"event_id":%q%s}}`, kind, to, more)))
	}
	root, other := string(alice.say(room, "root")), string(alice.say(room, "other"))
	reply := relating("m.thread", root, "")
	reaction := relating("m.annotation", reply, `,"key":"+"`)
	atRoot := relating("m.annotation", root, `,"key":"+"`)
	unknown := "$" + strings.Repeat("a", 43)
	orphan := relating("m.reference", unknown, "")
	for _, c := range []struct {
		event, thread string
		status        int
	}{
		{other, root, 400}, {other, "garbage", 400}, {reply, "main", 400}, {reply, other, 400}, {reaction, "main", 400}, {orphan, "garbage", 400},
		{root, unknown, 400},
		{root, root, 200}, {root, "main", 200}, {reply, root, 200}, {reaction, root, 200}, {atRoot, "main", 200}, {atRoot, root, 200},
		{other, "main", 200}, {orphan, "main", 200}, {orphan, root, 200},
	} {
		a := s.send("POST", "/_matrix/client/v3/rooms/"+string(room)+"/receipt/m.read/"+c.event, alice.token, map[string]any{"thread_id": c.thread})
		if a.status != c.status || a.status == 400 && a.code() != "M_INVALID_PARAM" {
			t.Errorf("%+v: %d %s", c, a.status, a.raw)
		}
	}
}
