package diagnose

import "os"

// writable tries, since nobody but the system can read an access control list right.
func writable(dir string) error {
	f, err := os.CreateTemp(dir, ".coracle-*")
	if err != nil {
		return err
	}
	f.Close()
	return os.Remove(f.Name())
}
