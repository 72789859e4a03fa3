package share

import "testing"

func TestHide(t *testing.T) {
	tests := []struct {
		root, home, dir, name string
		want                  bool
	}{
		{"/home/u", "/home/u", ".", ".ssh", true},
		{"/home/u", "/home/u", ".", ".docker", true},
		{"/home/u", "/home/u", "project", ".ssh", false},
		{"/home/u", "/home/u", ".config", "gcloud", true},
		{"/home/u", "/home/u", ".", "gcloud", false},
		{"/home/u/.config", "/home/u", ".", "gcloud", true},
		{"/home", "/home/u", "u", ".npmrc", true},
		{"/", "/home/u", "home/u", ".ssh", true},
		{"/src/project", "/home/u", ".", ".npmrc", false},
		{"/src/project", "/home/u", ".", ".SSH", true},
		{"/home/u2", "/home/u", ".", ".docker", false},
		{"/home/u/.ssh", "/home/u", ".", "id_rsa", false}, // shared on purpose
		{"/src", "", ".", ".aws", true},
	}
	for _, test := range tests {
		got := hide(test.root, test.home).hides(func() string { return test.dir }, test.name)
		if got != test.want {
			t.Errorf("%s/%s in a share of %s (home %s): hidden %v, want %v", test.dir, test.name, test.root, test.home, got, test.want)
		}
	}
	if s := hide("/home", "/home/u"); !s.pins("u/.config") || !s.pins("u") || !s.pins("U/.ssh") || s.pins("u/project") || s.pins("u/.con") {
		t.Error("what holds a secret can be moved, or what does not cannot")
	}
}
