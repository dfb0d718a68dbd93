// The usual Go server: a goroutine for each connection, buffered both ways.
package main

import (
	"bufio"
	"bytes"
	"log"
	"net"
	"os"
	"time"
)

func serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 512)
	out := bufio.NewWriterSize(conn, 512)
	answer := make([]byte, 0, 14)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil || !bytes.HasPrefix(line, []byte("TIME")) || !bytes.HasSuffix(line, []byte("\r\n")) {
			return
		}
		answer = time.Now().AppendFormat(answer[:0], "JAM 15:04:05\r\n")
		if _, err := out.Write(answer); err != nil {
			return
		}
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn)
	}
}
