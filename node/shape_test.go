package node_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// What a reader can hold at once.
const (
	maxFunction = 100 // lines, tests apart
	maxFile     = 1000
)

// TestShape: no function and no file is longer than a reader can hold, and eventgraph starts no goroutine.
func TestShape(t *testing.T) {
	t.Parallel()
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if name := d.Name(); name == "node_modules" || name == "testdata" || strings.HasPrefix(name, ".") && name != ".." {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go"):
			return nil
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if lines := set.File(file.Pos()).LineCount(); lines > maxFile {
			t.Errorf("%s has %d lines, the limit is %d: it tells more than one step of the story", path, lines, maxFile)
		}
		if strings.HasSuffix(path, "_test.go") {
			return nil
		}
		pure := strings.HasPrefix(path, filepath.Join("..", "eventgraph"))
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				from, to := set.Position(n.Pos()).Line, set.Position(n.End()).Line
				if lines := to - from + 1; lines > maxFunction {
					t.Errorf("%s:%d: %s has %d lines, the limit is %d", path, from, n.Name.Name, lines, maxFunction)
				}
			case *ast.GoStmt:
				if pure {
					t.Errorf("%s starts a goroutine: the event graph has none", set.Position(n.Pos()))
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Errorf("looked at %d files only", files)
	}
}
