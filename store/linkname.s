// Without a file of assembly the compiler refuses functions without a body, and compactors.go has two.
