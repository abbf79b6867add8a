// A command as large as real ones get: it says a line, and carries a good part of Go's standard library.
package main

import (
	"archive/zip"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/asn1"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"html/template"
	"image/jpeg"
	"image/png"
	"math/big"
	"net/http"
	"net/http/httputil"
	"net/rpc"
	"os"
	"regexp"
	"time"
)

// Kept alive by reference, and by what could be asked of them at run time.
func rarely() []any {
	fset := token.NewFileSet()
	file, _ := parser.ParseFile(fset, "x.go", "package x", 0)
	ast.Print(fset, file)
	conf := types.Config{Importer: importer.Default()}
	pkg, _ := conf.Check("x", fset, []*ast.File{file}, nil)
	image, _ := png.Decode(os.Stdin)
	_ = jpeg.Encode(os.Stdout, image, nil)
	reader, _ := zip.OpenReader("x")
	db, _ := sql.Open("x", "y")
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{}}}
	answer, _ := client.Get("http://localhost")
	dump, _ := httputil.DumpResponse(answer, true)
	certificate, _ := x509.ParseCertificate(dump)
	call, _ := rpc.DialHTTP("tcp", "x")
	var value any
	_, _ = asn1.Unmarshal(dump, &value)
	_ = gob.NewDecoder(os.Stdin).Decode(&value)
	_ = xml.NewDecoder(os.Stdin).Decode(&value)
	_ = json.NewDecoder(os.Stdin).Decode(&value)
	_ = template.Must(template.New("x").Parse("{{.}}")).Execute(os.Stdout, value)
	return []any{pkg, reader, db, certificate, call, regexp.MustCompile("x+"), big.NewInt(1).Exp(big.NewInt(3), big.NewInt(5), nil)}
}

func main() {
	fmt.Println("ready")
	if len(os.Args) > 1 && os.Args[1] == "rarely" {
		fmt.Println(rarely()...)
	}
}
