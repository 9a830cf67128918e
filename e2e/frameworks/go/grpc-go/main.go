// A grpc-go client that a test steers over standard input, and a grpc-go server that gets its listener
// over xDS; e2e/grpc/README.md has the commands.
//
//	grpc-go TARGET [CALLS]           (TARGET: xds:///orders, or 127.0.0.1:1234 without xDS)
//	grpc-go serve NAME[=PORT]
//
// gRPC itself reads GRPC_XDS_BOOTSTRAP. No generated code: an empty request, the backend's name in reply.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

const method = "/meshkeeper.e2e.Backend/Name"

func main() {
	var err error
	switch arguments := os.Args[1:]; {
	case len(arguments) == 2 && arguments[0] == "serve":
		err = serve(arguments[1])
	case len(arguments) == 1:
		err = steer(arguments[0], os.Stdin)
	case len(arguments) == 2:
		err = steer(arguments[0], strings.NewReader("call "+arguments[1]))
	default:
		err = fmt.Errorf("usage: grpc-go TARGET [CALLS] | grpc-go serve NAME[=PORT]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func say(value any) {
	line, err := json.Marshal(value)
	if err != nil {
		line = []byte(fmt.Sprintf(`{"error": %q}`, err))
	}
	fmt.Println(string(line))
}

// raw passes bytes through, in place of protobuf.
type raw struct{}

func (raw) Marshal(value any) ([]byte, error) { return *value.(*[]byte), nil }

func (raw) Unmarshal(data []byte, value any) error {
	*value.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "proto" }
