package clientapi

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// suiteBehaviours is how many behaviours of the client-server API the public conformance suite, Complement, names: the tests of its
// package tests/csapi that have no tests below them.
const suiteBehaviours = 311

// Each behaviour that the public conformance suite names has a test here. testdata/behaviours.tsv has them by the suite's name, one or
// more lines each, with the folder of the package and the name of our test. What the suite shows by interfaces that are not served here
// (an administrator's API over HTTP, a page on loopback) has what stands in its place.
func TestBehavioursOfTheSuiteAreTested(t *testing.T) {
	t.Parallel()
	file, err := os.Open("testdata/behaviours.tsv")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	behaviours := map[string]bool{}
	packages := map[string]map[string]bool{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) != 3 || fields[0] == "" {
			t.Fatalf("%q is not a behaviour, a package and a test", lines.Text())
		}
		folder, name := fields[1], fields[2]
		behaviours[fields[0]] = true
		if packages[folder] == nil {
			packages[folder] = testsIn(t, filepath.Join("..", "..", filepath.FromSlash(folder)))
		}
		if !packages[folder][name] {
			t.Errorf("%s: there is no %s in %s", fields[0], name, folder)
		}
	}
	if len(behaviours) != suiteBehaviours {
		t.Errorf("%d behaviours, want %d", len(behaviours), suiteBehaviours)
	}
}

// testsIn returns the names of the tests in a folder.
func testsIn(t *testing.T, folder string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", folder, err)
	}
	tests := map[string]bool{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				tests[f.Name.Name] = true
			}
		}
	}
	return tests
}
