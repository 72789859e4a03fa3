package dockerproxy

import (
	"bytes"
	"encoding/json"
	"net/http"
	"path"
	"strings"
)

// maxBody bounds the body of a request that names host paths. Those of docker and compose have a few KiB.
const maxBody = 16 << 20

// Policy decides about the host paths that requests name. Its methods may be called from several goroutines.
type Policy interface {
	// Source returns the path by which the engine finds the absolute path that a client gave. Its error is the client's
	// answer, with the status 400.
	Source(path string) (string, error)
}

// checker changes the host paths in a request's body by a policy.
type checker func(p Policy, body object) error

// checkerOf is nil for requests that name no host path. The rest of the Engine API has none: builds read the client's files
// through the client, VolumesFrom names containers that were checked, and devices are the machine's own.
func checkerOf(r *http.Request) checker {
	if !strings.EqualFold(r.Method, http.MethodPost) {
		return nil
	}
	switch p := route(r.URL); p {
	case "/containers/create":
		return checkContainer
	case "/volumes/create":
		return checkVolume
	case "/services/create":
		return checkService
	default:
		if ok, _ := path.Match("/services/*/update", p); ok {
			return checkService
		}
	}
	return nil
}

// rewrite is body as the engine gets it: parsed, checked, and written anew, so that the engine judges by what was checked.
func rewrite(check checker, p Policy, body []byte) ([]byte, error) {
	if len(body) > maxBody {
		return nil, tooLarge()
	}
	if err := checkDocument(body); err != nil {
		return nil, err
	}
	raw := json.RawMessage(body)
	if err := edit(&raw, func(o object) error { return check(p, o) }); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Grow(len(raw))
	if err := json.Compact(&out, raw); err != nil {
		return nil, badRequest("invalid JSON in the request's body")
	}
	return out.Bytes(), nil
}

func tooLarge() error {
	return &refusal{http.StatusRequestEntityTooLarge, "the request's body is larger than 16 MiB"}
}

// inside has f change the object at the end of a path of fields.
func inside(o object, names []string, f func(object) error) error {
	if len(names) == 0 {
		return f(o)
	}
	raw, err := o.field(names[0])
	if err != nil {
		return err
	}
	return edit(raw, func(o object) error { return inside(o, names[1:], f) })
}

func checkContainer(p Policy, body object) error {
	return inside(body, []string{"HostConfig"}, func(host object) error {
		binds, err := host.field("Binds")
		if err != nil {
			return err
		}
		if err := each(binds, func(raw *json.RawMessage) error { return checkBind(p, raw) }); err != nil {
			return err
		}
		return checkMounts(p, host)
	})
}

func checkService(p Policy, body object) error {
	return inside(body, []string{"TaskTemplate", "ContainerSpec"}, func(spec object) error { return checkMounts(p, spec) })
}

// checkBind checks SOURCE:TARGET[:MODE]. A source that is not absolute is a volume's name; what has more colons is refused
// by the engine.
func checkBind(p Policy, raw *json.RawMessage) error {
	spec, _ := text(raw)
	source, rest, ok := strings.Cut(spec, ":")
	if !ok || !path.IsAbs(source) {
		return nil
	}
	to, err := translate(p, source)
	if err != nil || to == source {
		return err
	}
	if strings.Contains(to, ":") {
		return badRequest("%s is %s on this computer, and a colon ends a path in %q: give the mount with --mount instead", source, to, spec)
	}
	*raw = encode(to + ":" + rest)
	return nil
}

func checkMounts(p Policy, o object) error {
	mounts, err := o.field("Mounts")
	if err != nil {
		return err
	}
	return each(mounts, func(raw *json.RawMessage) error {
		return edit(raw, func(mount object) error { return checkMount(p, mount) })
	})
}

func checkMount(p Policy, mount object) error {
	kind, err := mount.field("Type")
	if err != nil {
		return err
	}
	source, err := mount.field("Source")
	if err != nil {
		return err
	}
	switch name, _ := text(kind); strings.ToLower(name) {
	case "bind":
		return checkPath(p, source)
	case "volume":
		return inside(mount, []string{"VolumeOptions", "DriverConfig"}, func(driver object) error {
			return checkDriver(p, driver, "Name", "Options")
		})
	}
	return nil
}

func checkVolume(p Policy, body object) error { return checkDriver(p, body, "Driver", "DriverOpts") }

// checkDriver checks the options of the local driver, which mounts a directory when it is told -o bind. It passes the options
// to mount(2), so their order and what else they say does not matter.
func checkDriver(p Policy, o object, nameField, optionsField string) error {
	name, err := o.field(nameField)
	if err != nil {
		return err
	}
	if driver, _ := text(name); driver != "" && !strings.EqualFold(driver, "local") {
		return nil
	}
	options, err := o.field(optionsField)
	if err != nil {
		return err
	}
	return edit(options, func(options object) error {
		flags, _ := text(options.key("o"))
		for flag := range strings.SplitSeq(flags, ",") {
			switch strings.ToLower(strings.TrimSpace(flag)) {
			case "bind", "rbind":
				return checkPath(p, options.key("device"))
			}
		}
		return nil
	})
}

// checkPath checks a string that is a path. The engine has its own answer to one that is not absolute.
func checkPath(p Policy, raw *json.RawMessage) error {
	source, _ := text(raw)
	if !path.IsAbs(source) {
		return nil
	}
	to, err := translate(p, source)
	if err == nil && to != source {
		*raw = encode(to)
	}
	return err
}

func translate(p Policy, source string) (string, error) {
	if strings.Contains(source, "\x00") {
		return "", badRequest("the path %q has a zero byte", source)
	}
	to, err := p.Source(source)
	if err != nil {
		return "", badRequest("%v", err)
	}
	return to, nil
}
