package main

import (
	"strings"
	"testing"
	"unicode/utf8"

	"rsc.io/qr"
)

// TestDrawQR: the text, read back module by module, is the code with its margin.
func TestDrawQR(t *testing.T) {
	t.Parallel()
	// As long as a link of three IPv6 addresses: it must fit into 80 columns.
	code, err := qr.Encode("matrix:u/alice?"+strings.Repeat("x", 420), qr.L)
	if err != nil {
		t.Fatal(err)
	}
	for _, terminal := range []bool{false, true} {
		text := strings.NewReplacer("\x1b[97;40m", "", "\x1b[0m", "").Replace(string(drawQR(code.Size, code.Black, terminal)))
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if wide := utf8.RuneCountInString(lines[0]); wide != code.Size+2*qrBorder || wide > 80 {
			t.Errorf("%d columns for %d modules", wide, code.Size)
		}
		if want := (code.Size + 2*qrBorder + 1) / 2; len(lines) != want {
			t.Fatalf("%d lines, want %d", len(lines), want)
		}
		for row, line := range lines {
			for column, r := range []rune(line) {
				for half, light := range []bool{r == '█' || r == '▀', r == '█' || r == '▄'} {
					x, y := column-qrBorder, 2*row+half-qrBorder
					if y < code.Size+qrBorder && light == code.Black(x, y) {
						t.Fatalf("module %d, %d is wrong", x, y)
					}
				}
			}
		}
	}
}

// TestInviteAndJoin: a link made by one process brings another to it.
func TestInviteAndJoin(t *testing.T) {
	t.Parallel()
	b := build(t)
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		p := b.start(dir)
		p.until("Peers")
		p.file(b)
	}
	if _, errOut, code := b.run("a password\n", "user", "add", "alice", "--data", first); code != 0 {
		t.Fatal(errOut)
	}
	out, errOut, code := b.run("", "invite", "--data", first, "--expires", "1h")
	if code != 0 || !strings.Contains(out, "▀") {
		t.Fatalf("%s%s", out, errOut)
	}
	link := out[strings.Index(out, "matrix:u/alice:"):]
	link, _, _ = strings.Cut(link, "\n")
	out, _, _ = b.run("", "invite", "--list", "--data", first)
	id, _, _ := strings.Cut(out, " ")
	if !strings.Contains(out, "used by 0") || strings.Contains(link, id) && len(id) < 8 {
		t.Errorf("list: %s", out)
	}
	if out, errOut, code := b.run("", "join", link, "--data", second); code != 0 || !strings.HasPrefix(out, "connected; @alice:") {
		t.Errorf("%s%s", out, errOut)
	}
	if out, _, _ := b.run("", "invite", "--list", "--data", first); !strings.Contains(out, "used by 1") {
		t.Errorf("list: %s", out)
	}
	if out, errOut, code := b.run("", "invite", "--revoke", id, "--data", first); code != 0 {
		t.Errorf("%s%s", out, errOut)
	}
	if _, errOut, code := b.run("", "join", link, "--data", second); code == 0 || !strings.Contains(errOut, "revoked") {
		t.Errorf("a revoked link: %q", errOut)
	}
	if _, errOut, code := b.run("", "join", "https://matrix.to/", "--data", second); code == 0 || !strings.Contains(errOut, "matrix:") {
		t.Errorf("no link: %q", errOut)
	}
}
