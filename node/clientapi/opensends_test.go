package clientapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slowReader is a client that reads its answer when it is let.
type slowReader struct {
	*httptest.ResponseRecorder
	reads chan struct{}
}

func (w *slowReader) Write(b []byte) (int, error) {
	<-w.reads
	return w.ResponseRecorder.Write(b)
}

// slowly begins a request whose answer is read when reads is closed; done is closed when it has been.
func (c client) slowly(ctx context.Context, method, path, body string) (reads, done chan struct{}) {
	w := &slowReader{httptest.NewRecorder(), make(chan struct{})}
	req, err := http.NewRequestWithContext(ctx, method, c.s.url+"/_matrix/client"+path, strings.NewReader(body))
	if err != nil {
		c.s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	done = make(chan struct{})
	go func() {
		defer close(done)
		c.s.Handler().ServeHTTP(w, req)
		if w.Code != 200 {
			c.s.t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}()
	return w.reads, done
}

// What a device sends is answered before its own polls show it, of /sync and sliding sync, if the answer is read within sendAnswerPatience and the client
// does not hang up. Its user's other devices, and other users, are told at once.
func TestPollsShowAnEventAfterItsAnswer(t *testing.T) {
	t.Parallel()
	for what, request := range map[string]func(room, known, open string) (method, path, body string){
		"send": func(room, _, _ string) (string, string, string) {
			return "PUT", "/v3/rooms/" + room + "/send/m.room.message/t1", text("hello")
		},
		"redact": func(room, known, _ string) (string, string, string) {
			return "PUT", "/v3/rooms/" + room + "/redact/" + known + "/t2", `{}`
		},
		"state": func(room, _, _ string) (string, string, string) {
			return "PUT", "/v3/rooms/" + room + "/state/m.room.topic", `{"topic":"t"}`
		},
		"createRoom": func(_, _, _ string) (string, string, string) { return "POST", "/v3/createRoom", `{"name":"new"}` },
		"join":       func(_, _, open string) (string, string, string) { return "POST", "/v3/join/" + open, `{}` },
		"leave":      func(room, _, _ string) (string, string, string) { return "POST", "/v3/rooms/" + room + "/leave", `{}` },
	} {
		for how, end := range map[string]func(read, hangUp func()) (waited time.Duration){
			"answered":   func(read, _ func()) time.Duration { read(); return 0 },
			"hung up":    func(_, hangUp func()) time.Duration { hangUp(); return 0 },
			"never read": func(_, _ func()) time.Duration { time.Sleep(sendAnswerPatience); return sendAnswerPatience },
		} {
			if what != "send" && how != "answered" {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				s := newTestAPI(t, nil)
				s.SetRemote(localJoins{s.remote, s.Rooms})
				alice, bob := s.newClient("alice"), s.newClient("bob")
				other := s.logIn("alice", "OTHER")
				room, open := alice.room(), bob.room()
				bob.join(room)
				known := alice.say(room, "known")
				polls, atOnce := alice.polls(), other.polls()
				if what != "createRoom" && what != "join" {
					atOnce = append(atOnce, bob.polls()...)
				}
				synctest.Wait()

				ctx, hangUp := context.WithCancel(t.Context())
				defer hangUp()
				method, path, body := request(string(room), string(known), string(open))
				reads, done := alice.slowly(ctx, method, path, body)
				began := time.Now()
				for i, poll := range atOnce {
					<-poll
					if waited := time.Since(began); waited != 0 {
						t.Errorf("%s, %s: poll %d of another was answered after %v", what, how, i, waited)
					}
				}
				synctest.Wait()
				if len(polls[0])+len(polls[1]) > 0 {
					t.Errorf("%s, %s: the device's own polls did not wait", what, how)
				}
				want := end(func() { close(reads); <-done }, hangUp)
				for i, poll := range polls {
					if raw := <-poll; time.Since(began) != want || strings.Contains(raw, "hello") != (what == "send") {
						t.Errorf("%s, %s: own poll %d after %v: %s", what, how, i, time.Since(began), raw)
					}
				}
				if how != "answered" {
					close(reads)
				}
				<-done
			})
		}
	}
}

// polls are a long poll of /sync and one of sliding sync; each gives its answer.
func (c client) polls() []<-chan string {
	const away = "set_presence=offline" // presence is news too
	since, body := c.sync(c.sync("", away).NextBatch, away).NextBatch, window(0, 9, 9, "", "")
	pos := c.slide("", body, away).Pos
	plain, sliding := make(chan string, 1), make(chan string, 1)
	go func() { plain <- c.sync(since, away, "timeout=600000").raw }()
	go func() { sliding <- c.slide(pos, body, away, "timeout=600000").raw }()
	return []<-chan string{plain, sliding}
}

// A send that another server keeps waiting holds back nothing of other rooms, nor what others say in its own.
func TestOpenSendsHoldBackLittle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestAPI(t, nil)
		alice, bob := s.newClient("alice"), s.newClient("bob")
		room, elsewhere := alice.room(), alice.room()
		bob.join(room)
		reads, done := alice.slowly(t.Context(), "PUT", "/v3/rooms/"+string(room)+"/send/m.room.message/t1", text("hello"))
		synctest.Wait()
		for what, say := range map[string]func(){
			"one's own in another room": func() { alice.say(elsewhere, "elsewhere") },
			"another's":                 func() { bob.say(room, "and you") },
		} {
			polls := alice.polls() // these wait, as all that is in the room is new to them
			synctest.Wait()
			began := time.Now()
			say()
			for i, poll := range polls {
				<-poll
				if waited := time.Since(began); waited != 0 {
					t.Errorf("%s: poll %d waited %v", what, i, waited)
				}
			}
		}
		close(reads)
		<-done
	})
}
