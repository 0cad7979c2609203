package clientapi

import "testing"

// A new name does not mark everything as read.
func TestUnreadSurvivesANewName(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	alice.say(room, "before")
	bob.join(room)
	alice.say(room, "one")
	bob.call(200, "PUT", "/v3/profile/"+string(bob.user)+"/displayname", map[string]string{"displayname": "robert"})
	alice.say(room, "two")
	if counts, _ := bob.unread(room, false); counts.Notifications != 2 {
		t.Errorf("%d unread, want 2", counts.Notifications)
	}
}
