package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// The workload of the crash tests: commit i is a function of i alone, so that a reopened store can be compared
// with what it must hold after some number of commits.

const workKeys = 7

// workCommit makes commit i of the workload, from 1: it sets the counter, one of workKeys records, deletes another, and logs
// two changes.
func workCommit(s *Store, i uint64) error {
	_, err := s.Update(context.Background(), func(tx *Tx) error {
		for n := range 2 {
			if _, err := tx.Log(Change{Kind: ChangeProfile, Key: fmt.Sprint(i, n)}); err != nil {
				return err
			}
		}
		return errors.Join(
			tx.put(key(0xf1), binary.BigEndian.AppendUint64(nil, i)),
			tx.put(key(0xf2).u64(i%workKeys), workValue(i)),
			tx.delete(key(0xf2).u64((i+3)%workKeys)),
		)
	})
	return err
}

func workValue(i uint64) []byte {
	r := rand.New(rand.NewPCG(i, 1))
	v := make([]byte, r.IntN(6000))
	for n := range v {
		v[n] = byte(r.Uint32())
	}
	return v
}

// workState is how many commits of the workload a store shows, and an error unless it shows exactly the state after those.
func workState(s *Store) (n uint64, err error) {
	err = s.View(func(r *Reader) error {
		v, err := r.get(key(0xf1))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if len(v) == 8 {
			n = binary.BigEndian.Uint64(v)
		}
		want := map[uint64][]byte{}
		for i := max(n, 3*workKeys) - 3*workKeys + 1; i <= n; i++ {
			want[i%workKeys] = workValue(i)
			delete(want, (i+3)%workKeys)
		}
		err = r.scan(key(0xf2), nil, false, func(k, v []byte) (bool, error) {
			i := parts(k).u64()
			if w, ok := want[i]; !ok || string(w) != string(v) {
				return false, fmt.Errorf("record %d is not that of commit %d", i, n)
			}
			delete(want, i)
			return true, nil
		})
		if err == nil && len(want) > 0 {
			err = fmt.Errorf("after commit %d, %d records are missing", n, len(want))
		}
		if err != nil {
			return err
		}
		logged := Position(0)
		err = r.Changes(0, 1<<40, func(p Position, c Change) (bool, error) {
			if logged++; p != logged || c.Key != fmt.Sprint((p+1)/2, (p+1)%2) {
				return false, fmt.Errorf("position %d is %v, after %d", p, c, logged-1)
			}
			return true, nil
		})
		if err == nil && (logged != Position(2*n) || s.Position() != logged) {
			err = fmt.Errorf("after commit %d the log ends at %d, the store at %d", n, logged, s.Position())
		}
		return err
	})
	return n, err
}

// ramDir is a directory of the test in memory, if there is such a place: nothing here depends on a disk.
func ramDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "plexus-store-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// files is a data directory as it lay on disk at one moment, as far as anything was written. A power loss is a change
// to a copy of it.
type files map[string]file

type file struct {
	content []byte // up to the last page that is not zero
	size    int64
}

// snapshot copies a directory while no commit is under way. Badger may be at work behind it: then it is tried again.
func snapshot(t testing.TB, dir string) files {
	t.Helper()
	for {
		before := fileNames(t, dir)
		f := files{}
		for _, name := range before {
			name, _, _ = strings.Cut(name, " ")
			if name == "reserve" {
				continue
			}
			content, size, err := readUsed(filepath.Join(dir, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			f[name] = file{content, size}
		}
		if slices.Equal(before, fileNames(t, dir)) {
			return f
		}
	}
}

// fileNames lists names and sizes.
func fileNames(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			names = append(names, fmt.Sprint(e.Name(), " ", fi.Size()))
		}
	}
	return names
}

// readUsed reads a file up to its last page that is not zero; of a log, up to the first page that is.
func readUsed(path string) ([]byte, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	var b []byte
	used := 0
	page := make([]byte, 4096)
	for {
		n, err := f.Read(page)
		if n == 0 || err != nil {
			return b[:used], fi.Size(), nil
		}
		b = append(b, page[:n]...)
		if !isZero(page[:n]) {
			used = len(b)
		} else if strings.HasSuffix(path, ".mem") {
			return b[:used], fi.Size(), nil
		}
	}
}

// copy is a copy whose files can be changed one by one.
func (f files) copy() files {
	c := maps.Clone(f)
	for name, f := range c {
		f.content = bytes.Clone(f.content)
		c[name] = f
	}
	return c
}

// cut makes a file end at an offset.
func (f files) cut(name string, at int64) {
	f[name] = file{f[name].content[:min(at, int64(len(f[name].content)))], at}
}

// zero overwrites a part of a file.
func (f files) zero(name string, from, to int64) { clear(f[name].content[from:to]) }

// write puts the files into a new directory.
func (f files) write(t testing.TB) string {
	t.Helper()
	dir := ramDir(t)
	for name, f := range f {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, f.content, 0o600), os.Truncate(path, f.size)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func isZero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// reopen opens a store on the files; the number of commits that it shows, and what it says it lost.
func (f files) reopen(t testing.TB) (n uint64, loss string, err error) {
	t.Helper()
	dir := f.write(t)
	defer os.RemoveAll(dir)
	s, err := Open(dir, Options{small: true})
	if err != nil {
		return 0, "", err
	}
	n, err = workState(s)
	if err == nil { // and it goes on from there
		if err = workCommit(s, n+1); err == nil {
			_, err = workState(s)
		}
	}
	loss = s.Loss()
	return n, loss, errors.Join(err, s.Close())
}

// newestLog is the name of the newest log, and where its entries end.
func (f files) newestLog(t testing.TB) (name string, edges []int64) {
	t.Helper()
	for n := range f {
		if strings.HasSuffix(n, ".mem") && n > name {
			name = n
		}
	}
	r := &logReader{in: bufio.NewReader(bytes.NewReader(f[name].content)), offset: logHeaderSize}
	if _, err := r.in.Discard(logHeaderSize); err != nil {
		t.Fatalf("log %q: %v", name, err)
	}
	for {
		if _, ok := r.next(); !ok {
			return name, edges
		}
		edges = append(edges, r.offset)
	}
}

// currentLog is the number of the log that Badger writes.
func (s *Store) currentLog(t testing.TB) int {
	t.Helper()
	fids, err := logFids(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	return fids[len(fids)-1]
}

// TestPowerLoss makes, after each commit of a workload, every power loss during the next one: all up to the commit was
// synced, of what came after anything may be on disk.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	s := openAt(t, ramDir(t), Options{small: true})
	if err := workCommit(s, 1); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, s.dir)
	for i := uint64(2); i <= 12; i++ {
		if err := workCommit(s, i); err != nil {
			t.Fatal(err)
		}
		now := snapshot(t, s.dir)
		powerLosses(t, i-1, before, now)
		before = now
	}
}

// powerLosses loses the power between two moments, of which the first shows n commits and the second one more.
func powerLosses(t *testing.T, n uint64, before, now files) {
	t.Helper()
	oldName, edges := before.newestLog(t)
	synced := edges[len(edges)-1]
	log, edges := now.newestLog(t)
	if oldName != log {
		t.Fatal("this workload was to stay in one log")
	}
	written := edges[len(edges)-1]
	lose := func(what string, least uint64, change func(f files)) {
		t.Helper()
		f := now.copy()
		f["witness"] = before["witness"] // it is written after the sync
		change(f)
		got, loss, err := f.reopen(t)
		if err != nil || got < least || got > n+1 || loss != "" {
			t.Fatalf("after commit %d, %s: %d commits, loss %q, %v", n, what, got, loss, err)
		}
	}
	lose("nothing lost", n+1, func(files) {})
	var points []int64
	for i, e := range edges {
		if e >= synced && i+1 < len(edges) {
			points = append(points, e, e+1, (e+edges[i+1])/2, edges[i+1]-1)
		}
	}
	for i, at := range points {
		if i%2 == 0 { // to the reader it is the same, so in turn
			lose(fmt.Sprint("log cut at ", at), n, func(f files) { f.cut(log, at) })
		} else {
			lose(fmt.Sprint("log zeroed from ", at), n, func(f files) { f.zero(log, at, written) })
		}
	}
	const page = 4096
	for from := synced; from < written; from = (from/page + 1) * page {
		to := min((from/page+1)*page, written)
		lose(fmt.Sprint("page zeroed at ", from), n, func(f files) { f.zero(log, from, to) })
	}

	// With the new witness the same loss is not a power loss, and has to be told.
	f := now.copy()
	f.zero(log, synced, written)
	if got, loss, err := f.reopen(t); err != nil || got != n || !strings.Contains(loss, "lost") {
		t.Fatalf("after commit %d, log damaged behind the witness: %d commits, loss %q, %v", n, got, loss, err)
	}
}

// TestPowerLossAtFlush loses the power around the moment when Badger has written a log as a table: the table's name, the
// manifest's record or the log's deletion may be missing in any combination that a file system can leave.
func TestPowerLossAtFlush(t *testing.T) {
	t.Parallel()
	src := ramDir(t)
	s, err := Open(src, Options{small: true})
	if err != nil {
		t.Fatal(err)
	}
	const commits = 9
	for i := uint64(1); i <= commits; i++ {
		if err := workCommit(s, i); err != nil {
			t.Fatal(err)
		}
	}
	logged := snapshot(t, src) // everything in the log
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	flushed := snapshot(t, src) // everything in a table, named by the manifest, and the log gone

	log, edges := logged.newestLog(t)
	table := ""
	for name := range flushed {
		if strings.HasSuffix(name, ".sst") {
			table = name
		}
	}
	was, is := logged["MANIFEST"].size, flushed["MANIFEST"].size
	if table == "" || was >= is {
		t.Fatalf("table %q, manifest grew from %d to %d", table, was, is)
	}
	for cut := was; cut <= is; cut++ {
		for _, lostTable := range []bool{false, true} {
			f := flushed.copy()
			f[log] = logged[log]
			f.cut("MANIFEST", cut)
			if lostTable {
				delete(f, table)
			}
			n, loss, err := f.reopen(t)
			if n != commits || loss != "" || err != nil {
				t.Fatalf("manifest of %d bytes, table lost: %v: %d commits, loss %q, %v", cut, lostTable, n, loss, err)
			}
		}
	}
	// A log being deleted is of length 0 for a moment; a new one may be a name only, or a header; and what of a
	// log is in a table need not be whole.
	for _, size := range []int64{0, 5, logHeaderSize, logHeaderSize + 100, edges[len(edges)/2]} {
		f := flushed.copy()
		f[log] = logged.copy()[log]
		f.cut(log, size)
		if n, loss, err := f.reopen(t); n != commits || loss != "" || err != nil {
			t.Fatalf("log of %d bytes: %d commits, loss %q, %v", size, n, loss, err)
		}
	}
	// The table gone, and the log with it, is damage.
	f := flushed.copy()
	delete(f, table)
	if n, loss, err := f.reopen(t); !errors.Is(err, ErrDamaged) {
		t.Fatalf("table lost: %d commits, loss %q, %v", n, loss, err)
	}
}

// TestPowerLossManyTables copies the directory during a workload that fills several logs, while Badger flushes and
// compacts behind it, and reopens it.
func TestPowerLossManyTables(t *testing.T) {
	t.Parallel()
	s := openAt(t, ramDir(t), Options{small: true})
	logs := map[int]bool{}
	for i := uint64(1); i <= 600; i++ {
		if err := workCommit(s, i); err != nil {
			t.Fatal(err)
		}
		if log := s.currentLog(t); i%32 == 0 || !logs[log] {
			logs[log] = true
		} else {
			continue
		}
		if n, loss, err := snapshot(t, s.dir).reopen(t); n != i || loss != "" || err != nil {
			t.Fatalf("after commit %d: %d commits, loss %q, %v", i, n, loss, err)
		}
	}
	if len(logs) < 3 {
		t.Fatalf("the workload filled %d logs only", len(logs))
	}
}

// TestDamagedLogBeforeAnother: what came after a damaged log rests on what is gone. It is put aside and told.
func TestDamagedLogBeforeAnother(t *testing.T) {
	t.Parallel()
	s := openAt(t, ramDir(t), Options{small: true})
	n := uint64(0)
	var full files
	for first := s.currentLog(t); s.currentLog(t) == first; {
		if n++; n%8 == 0 || n > 150 { // the log holds about 170
			full = snapshot(t, s.dir)
		}
		if err := workCommit(s, n); err != nil {
			t.Fatal(err)
		}
	}
	f := snapshot(t, s.dir)
	first, _ := full.newestLog(t)
	// Both logs, and no table yet: as if Badger had not come to it.
	f = f.copy()
	f[first] = full[first]
	f["MANIFEST"] = full["MANIFEST"]
	maps.DeleteFunc(f, func(name string, _ file) bool { return strings.HasSuffix(name, ".sst") })
	if got, loss, err := f.copy().reopen(t); got != n || loss != "" || err != nil {
		t.Fatalf("whole: %d of %d commits, loss %q, %v", got, n, loss, err)
	}
	_, edges := full.newestLog(t)
	at := edges[len(edges)/2]
	f = f.copy()
	f[first].content[at+20] ^= 4
	got, loss, err := f.reopen(t)
	if err != nil || got == 0 || got >= n-1 || !strings.Contains(loss, "put aside") {
		t.Fatalf("damaged: %d of %d commits, loss %q, %v", got, n, loss, err)
	}
}

// TestDamagedFiles flips bits all over the files of a store.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	const commits = 130
	var whole files
	for _, upTo := range []uint64{60, 100, commits} { // tables of several opens, and a log
		s, err := Open(dir, Options{small: true})
		if err != nil {
			t.Fatal(err)
		}
		n, err := workState(s)
		for ; err == nil && n < upTo; n++ {
			err = workCommit(s, n+1)
		}
		if err != nil {
			t.Fatal(err)
		}
		whole = snapshot(t, dir)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	harmless, told, refused := 0, 0, 0
	for _, name := range slices.Sorted(maps.Keys(whole)) {
		size := len(whole[name].content)
		if size == 0 {
			continue
		}
		for _, at := range []int{0, size - 1, max(size-5, 0), r.IntN(size), r.IntN(size), r.IntN(size), r.IntN(size), r.IntN(size)} {
			f := whole.copy()
			f[name].content[at] ^= 1 << r.IntN(8)
			n, loss, err := f.reopen(t)
			switch {
			case errors.Is(err, ErrDamaged):
				refused++
			case err != nil:
				t.Errorf("%s, byte %d: %v", name, at, err)
			case loss != "":
				told++
			case n != commits:
				t.Errorf("%s, byte %d: %d commits of %d without a word", name, at, n, commits)
			default:
				harmless++
			}
		}
	}
	if told == 0 || refused == 0 {
		t.Errorf("%d flips told, %d refused, %d harmless", told, refused, harmless)
	}
}

// The test binary is also the process that a test kills, or that a full disk might kill: these name what it does, and where.
const (
	childEnv    = "PLEXUS_STORE_TEST_CHILD"
	childDirEnv = "PLEXUS_STORE_TEST_DIR"
)

func child(what, dir string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+what, childDirEnv+"="+dir)
	return cmd
}

var children = map[string]func(dir string) error{"write": crashWriter, "segments": segmentWriter}

// runChild is main of such a process.
func runChild(what, dir string) {
	if err := children[what](dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// crashWriter is the process that TestKill kills: it writes with several writers and says what was acknowledged.
func crashWriter(dir string) error {
	s, err := Open(dir, Options{small: true})
	if err != nil {
		return err
	}
	if s.Loss() != "" {
		return errors.New(s.Loss())
	}
	var next atomic.Uint64
	err = s.View(func(r *Reader) error {
		return r.scan(key(0xf3), nil, true, func(k, _ []byte) (bool, error) {
			next.Store(parts(k).u64())
			return false, nil
		})
	})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				i := next.Add(1)
				_, err := s.Update(context.Background(), func(tx *Tx) error {
					_, err := tx.Log(Change{Kind: ChangeProfile, Key: fmt.Sprint(i)})
					return errors.Join(err, tx.put(key(0xf3).u64(i), workValue(i)))
				})
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Printf("%d\n", i) // one write each, so that a line is whole
			}
		})
	}
	wg.Wait()
	return nil
}

// TestKill kills a writing process again and again; what it had acknowledged is there.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	acked := map[uint64]bool{}
	r := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		cmd := child("write", dir)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for stop := 50 + r.IntN(400); lines.Scan(); stop-- {
			var i uint64
			if _, err := fmt.Sscan(lines.Text(), &i); err != nil {
				t.Fatal(err)
			}
			acked[i] = true
			if stop == 0 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if errs.Len() > 0 {
			t.Fatal(errs.String())
		}
		s, err := Open(dir, Options{small: true})
		if err != nil {
			t.Fatal(err)
		}
		if s.Loss() != "" {
			t.Error("loss: ", s.Loss())
		}
		mustView(t, s, func(r *Reader) error {
			for i := range acked {
				v, err := r.get(key(0xf3).u64(i))
				if err != nil || string(v) != string(workValue(i)) {
					t.Fatalf("record %d was acknowledged: %d bytes, %v", i, len(v), err)
				}
			}
			return nil
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d records acknowledged", len(acked))
}
