package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMeshKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "mesh.key")
	var out bytes.Buffer
	if err := command(t.Context(), []string{"mesh-key", path}, nil, &out, nil); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), path) {
		t.Errorf("printed %q", out.String())
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	content, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(content), "/key/swarm/psk/1.0.0/\n/base16/\n") {
		t.Errorf("content %q, %v", content, err)
	}
	if strings.Contains(out.String(), strings.Fields(string(content))[2]) {
		t.Error("the key was printed")
	}
	if _, err := readMeshKey(path); err != nil {
		t.Error(err)
	}

	if err := command(t.Context(), []string{"mesh-key", path}, nil, &out, nil); err == nil || !strings.Contains(err.Error(), "stays as it is") {
		t.Errorf("over a key: %v", err)
	}
	if again, _ := os.ReadFile(path); !bytes.Equal(again, content) {
		t.Error("the key was written over")
	}
	for _, args := range [][]string{{"mesh-key"}, {"mesh-key", "-h"}, {"mesh-key", "a", "b"}} {
		if err := command(t.Context(), args, nil, &out, nil); err == nil || !strings.Contains(err.Error(), "usage") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := readMeshKey(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "plexus mesh-key") {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readMeshKey(filepath.Join(dir, "other")); err == nil || !strings.Contains(err.Error(), "no mesh key") {
		t.Errorf("another file: %v", err)
	}
}
