package debian

import (
	"regexp"
	"slices"
	"strings"
)

// NoAssertion is what SPDX says where a licence is not known.
const NoAssertion = "NOASSERTION"

// spdx maps the short names of Debian's copyright format to SPDX's, where they differ. Keys are in lower case.
var spdx = map[string]string{
	"apache-2.0": "Apache-2.0", "apache-2": "Apache-2.0", "expat": "MIT", "mit": "MIT", "isc": "ISC", "zlib": "Zlib",
	"bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause", "bsd-3": "BSD-3-Clause", "bsd-2": "BSD-2-Clause",
	"bsd-4-clause": "BSD-4-Clause", "mpl-2.0": "MPL-2.0", "mpl-1.1": "MPL-1.1", "artistic": "Artistic-1.0-Perl",
	"gpl-1": "GPL-1.0-only", "gpl-1+": "GPL-1.0-or-later", "gpl-2": "GPL-2.0-only", "gpl-2.0": "GPL-2.0-only",
	"gpl-2+": "GPL-2.0-or-later", "gpl-2.0+": "GPL-2.0-or-later", "gpl-3": "GPL-3.0-only", "gpl-3+": "GPL-3.0-or-later",
	"gpl-3.0": "GPL-3.0-only", "gpl-3.0+": "GPL-3.0-or-later",
	"lgpl-2": "LGPL-2.0-only", "lgpl-2+": "LGPL-2.0-or-later", "lgpl-2.0+": "LGPL-2.0-or-later",
	"lgpl-2.1": "LGPL-2.1-only", "lgpl-2.1+": "LGPL-2.1-or-later", "lgpl-3": "LGPL-3.0-only", "lgpl-3+": "LGPL-3.0-or-later",
	"gfdl-1.3+": "GFDL-1.3-or-later", "gfdl-1.2+": "GFDL-1.2-or-later", "gfdl-1.3": "GFDL-1.3-only", "cc0-1.0": "CC0-1.0",
	"cc0": "CC0-1.0", "openssl": "OpenSSL", "curl": "curl", "0bsd": "0BSD", "public-domain": "LicenseRef-public-domain",
	"pd": "LicenseRef-public-domain", "cc-by-sa-3.0": "CC-BY-SA-3.0", "cc-by-4.0": "CC-BY-4.0",
}

var words = regexp.MustCompile(`[()]|[^\s(),]+`)

// License reads a package's copyright file and returns an SPDX expression of all licences that it names, each once, or
// NoAssertion where the file is not in the machine-readable format (DEP-5, copyright-format 1.0). A name which SPDX does
// not have becomes a LicenseRef of the same letters.
func License(copyright []byte) string {
	all := stanzas(copyright)
	if len(all) == 0 || !strings.Contains(all[0]["format"], "copyright-format") {
		return NoAssertion
	}
	var out []string
	for _, s := range all {
		first, _, _ := strings.Cut(s["license"], "\n")
		if first == "" || s["files"] == "" {
			continue
		}
		if e := expression(first); !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return NoAssertion
	}
	return strings.Join(out, " AND ")
}

// expression turns one License field into SPDX. Where it has "or", or more than one name, it is put in parentheses.
func expression(field string) string {
	var out []string
	for _, w := range words.FindAllString(strings.NewReplacer(" with ", "-with-", " exception", "-exception").Replace(field), -1) {
		switch lower := strings.ToLower(w); {
		case lower == "or" || lower == "and/or":
			out = append(out, "OR")
		case lower == "and":
			out = append(out, "AND")
		case w == "(" || w == ")": // the format has none that change a meaning
		case spdx[lower] != "":
			out = append(out, spdx[lower])
		default:
			out = append(out, "LicenseRef-"+Ref(w))
		}
	}
	return join(out)
}

// join makes a valid expression of words: an operator stands between any two licences and nowhere else.
func join(parts []string) string {
	var out []string
	operator := func(s string) bool { return s == "OR" || s == "AND" }
	for _, w := range parts {
		if operator(w) && (len(out) == 0 || operator(out[len(out)-1])) {
			continue
		}
		if !operator(w) && len(out) > 0 && !operator(out[len(out)-1]) {
			out = append(out, "AND")
		}
		out = append(out, w)
	}
	if n := len(out); n > 0 && operator(out[n-1]) {
		out = out[:n-1]
	}
	switch len(out) {
	case 0:
		return NoAssertion
	case 1:
		return out[0]
	}
	return "(" + strings.Join(out, " ") + ")"
}

var notRef = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// Ref makes of s what SPDX allows in an identifier: letters, digits, dots and hyphens.
func Ref(s string) string {
	return strings.Trim(notRef.ReplaceAllString(strings.ReplaceAll(s, "+", "-or-later"), "-"), "-")
}
